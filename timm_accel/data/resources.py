"""What this machine has for loading images: CPUs that this process may use, and memory that is free."""

import os
import shutil
from pathlib import Path

import psutil

_SHARED_MEMORY = Path("/dev/shm")


def available_cpus() -> int:
    """Return how many CPUs this process may use: those of its affinity, where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_fits_in_memory(num_bytes: int, count: int) -> None:
    """Raise a `MemoryError` where the copies of all processes of this machine would take most of what is free.

    Args:
        num_bytes: What the decoded images of one process take.
        count: How many images they are.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = psutil.virtual_memory().available
    if _SHARED_MEMORY.is_dir():
        free = min(free, shutil.disk_usage(_SHARED_MEMORY).free)
    if num_bytes * processes > 0.8 * free:
        raise MemoryError(
            f"Expected the decoded pictures to fit into memory, but got {count} pictures that take "
            f"{in_megabytes(num_bytes)} in each of {processes} processes, with {in_megabytes(free)} free. "
            "Pass cache=None."
        )


def in_megabytes(num_bytes: int) -> str:
    """Return a number of bytes in MB, or in GB from there on, with the unit."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"

"""The CPUs that this process may use, the memory that is free, and the peak of memory."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from timm_accel.messages import counted

_SHARED_MEMORY = Path("/dev/shm")
_CGROUPS = (  # the limit and the use of memory, of version 2 and 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_cpus() -> int:
    """Return how many CPUs this process may use; its CPU affinity counts where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_fits_in_memory(num_bytes: int, count: int) -> None:
    """Raise a `MemoryError` when the decoded images of all processes take more than 80 % of the free memory.

    Args:
        num_bytes: The size of the decoded images of one process.
        count: The number of images.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = psutil.virtual_memory().available
    if _SHARED_MEMORY.is_dir():
        free = min(free, shutil.disk_usage(_SHARED_MEMORY).free)
    if num_bytes * processes > 0.8 * free:
        raise MemoryError(
            f"Expected the decoded images to fit into memory, but got {counted(count, 'image')} that "
            f"take{'s' * (count == 1)} {in_megabytes(num_bytes)} in each of {counted(processes, 'process')}, "
            f"with {in_megabytes(free)} free. Pass cache=None."
        )


def free_memory() -> int:
    """Return the bytes of memory that this machine and the limit of its container leave to further use."""
    free = psutil.virtual_memory().available
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # no such limit: the file is absent, or holds "max"
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def in_megabytes(num_bytes: int) -> str:
    """Return a number of bytes as text in MB or GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def check_loader_options(batch_size: Any, num_workers: Any) -> None:
    """Raise a `ValueError` for a batch size or a number of loader workers that torch's loader does not take."""
    for name, value, lowest in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(
                f"Expected {name} to be an integer of at least {lowest}, but got {value!r}. Choose another."
            )

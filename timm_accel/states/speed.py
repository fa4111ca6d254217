"""How fast an epoch runs: images per second, the share of time spent waiting for data, and the peak of memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from timm_accel.states.running_mean import RunningMean

COLUMNS = ("images_per_second", "data_wait", "peak_memory_gb")

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Speed:
    """The speed of one training epoch or evaluation, from its start or the resume of the run within it.

    It is measured by the host's clock, so that no step waits for the device. The results are of this machine and this
    moment: no history and no state holds them.

    Args:
        counted: The running loss of the epoch, which counts its images; None outside an epoch.
        accelerator: It knows the device, and the ranks, of which each is taken to be as fast as this one.
    """

    def __init__(self, counted: RunningMean | None = None, accelerator: Accelerator | None = None) -> None:
        self._counted = counted
        self._device = None if accelerator is None else accelerator.device
        self._num_processes = 1 if accelerator is None else accelerator.num_processes
        self._before = 0 if counted is None else counted.count
        self._started = perf_counter()
        self._ended = self._started if counted is None else None
        self._left_out = self._waited = 0.0

    @property
    def images(self) -> int:
        """The images of all ranks so far."""
        return 0 if self._counted is None else (self._counted.count - self._before) * self._num_processes

    @property
    def seconds(self) -> float:
        """The duration so far, without the evaluations within the epoch."""
        return (perf_counter() if self._ended is None else self._ended) - self._started - self._left_out

    @property
    def images_per_second(self) -> float:
        """The images of all ranks in a second, or NaN before the first."""
        return self.images / self.seconds if self.images and self.seconds > 0 else float("nan")

    @property
    def data_wait(self) -> float:
        """The share of the time that this rank spent in its loader, from 0 to 1, or NaN before the first image.

        On a GPU it is an upper bound of the time that the device had nothing to do.
        """
        return self._waited / self.seconds if self.images and self.seconds > 0 else float("nan")

    @property
    def peak_memory_gb(self) -> float:
        """The most memory since the start of the epoch in GB (10⁹ bytes): tensors on this rank's GPU, or else the
        memory of this process since it began.
        """
        return peak_memory(self._device) / 1e9

    def row(self) -> dict[str, float]:
        """Return the columns that a table of epochs has for it, rounded; an epoch without an image has none."""
        return {name: round(getattr(self, name), 3) for name in COLUMNS} if self.images else {}

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of a loader, and count the time that it takes to give them."""
        began, end = perf_counter(), object()
        iterator = iter(batches)
        while True:
            batch = next(iterator, end)
            self._waited += perf_counter() - began
            if batch is end:
                return
            yield batch
            began = perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Count some seconds as no part of the epoch."""
        self._left_out += seconds

    def end(self) -> float:
        """Stop the clock, and return the duration in seconds."""
        self._ended = perf_counter()
        return self.seconds


def reset_peak_memory(device: torch.device) -> None:
    """Let a GPU count the peak of its memory from now on."""
    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats(device)


def peak_memory(device: torch.device | None) -> int:
    """Return the most bytes since `reset_peak_memory`: of tensors on a GPU, or else of this process since it began.

    It waits for no device.
    """
    module: Any = None if device is None else torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        return module.max_memory_allocated(device)
    if resource is None:
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)  # Windows has the peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

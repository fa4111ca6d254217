"""Signals that end a run: the processes sync, save and exit; loader workers stay alive until then."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_bool
from functools import cache, partial
from multiprocessing import RawValue
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

EXIT_FOR_REQUEUE = 75  # EX_TEMPFAIL, which Windows does not name
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_OF_SCHEDULERS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_signals(request: Callable[[str], None]) -> Iterator[None]:
    """Call `request` with a signal's name instead of ending the process: SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP.

    Of the last three a handler of the user stays, and one that is ignored, as SIGHUP is by nohup, stays ignored.
    A second SIGINT interrupts at once if it comes over a second later; a launcher's echo of the first comes sooner.
    Outside the main thread, where python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def handle(number: int, frame: FrameType | None) -> None:
        if first and number == signal.SIGINT and time.monotonic() - first[0] > 1:
            raise KeyboardInterrupt
        first.append(time.monotonic())
        if number == getattr(signal, "SIGHUP", None):
            _write_nowhere(terminals)
        request(signal.Signals(number).name)

    free = [number for number in _OF_SCHEDULERS if signal.getsignal(number) == signal.SIG_DFL]
    before = {number: signal.signal(number, handle) for number in (*_STOPPING, *free)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_nowhere(streams: list[int]) -> None:
    """Send what is printed to nowhere: once a terminal is closed, each line to it is an error, also of a bar."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)


@cache
def _exit_flag(process: int) -> Any:
    """Return a flag that the workers of a process share. The process sets it on exit, and then ends them by SIGTERM."""
    flag = RawValue(c_bool, False)
    # multiprocessing's exit would wait forever; unlike atexit, this runs before it, in child processes too
    Finalize(None, setattr, (flag, "value", True), exitpriority=100)
    return flag


def shield_workers(loader: Any) -> None:
    """Let the workers of a loader survive signals to the process group or job, or they would end before the run."""
    if isinstance(loader, DataLoader) and loader.num_workers > 0:
        inner: Any = loader.worker_init_fn
        if not (isinstance(inner, partial) and inner.func is _shielded):
            loader.worker_init_fn = partial(_shielded, _exit_flag(os.getpid()), inner)


def _shielded(exiting: Any, worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        if exiting.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, handle)
    for ignored in (signal.SIGINT, *_OF_SCHEDULERS):
        signal.signal(ignored, signal.SIG_IGN)
    if worker_init_fn is not None:
        worker_init_fn(worker_id)

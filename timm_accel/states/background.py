"""A write beside the training: the copies that it writes, and the thread in which it runs.

Loader workers may be forked meanwhile. The thread takes no lock that a worker uses, and a worker has neither its files
nor the copies: otherwise a deleted state would take disk and memory as long as the worker lives.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate
from threading import Thread
from typing import IO, Any, Generic, TypeVar

import torch
from torch import nn

from timm_accel.states.plain import plain

with suppress(ModuleNotFoundError):  # torch 2.6 has none
    import torch.utils.serialization.config  # by `torch.save`: a worker forked during an import may never import that

T = TypeVar("T")
ALIGNED = 64  # bytes at which tensors begin, as torch aligns its own
_files: set[int] = set()  # the descriptors of what is being written


class HostMemory:
    """Memory of the host that keeps copies of tensors. Each copy is written over the one before, which is much faster.

    A forked process does not get it: both would share its pages, and the next copy would have to copy each page first.
    """

    def __init__(self) -> None:
        self._buffer: Any = b""

    def copy(self, value: Any, where: str) -> Any:
        """Return a value with copies of all its tensors. Those that share memory share that of their copies.

        Args:
            value: Tensors and plain values.
            where: What it is, for the message.

        Raises:
            TypeError: Something in it is neither a tensor nor a plain value.
        """
        storages: dict[int, Any] = {}
        plain(value, where, lambda tensor: _collect(tensor, storages))
        starts = list(accumulate((-(-each.nbytes() // ALIGNED) * ALIGNED for each in storages.values()), initial=0))
        if starts[-1] > len(self._buffer):
            self._buffer = _allocate(starts[-1])
        copies = {}
        for (address, storage), start in zip(storages.items(), starts, strict=False):
            room = torch.frombuffer(self._buffer, dtype=torch.uint8, count=storage.nbytes(), offset=start)
            copies[address] = room.untyped_storage().copy_(storage)
        return plain(value, where, lambda tensor: _copied(tensor, copies))


def _allocate(size: int) -> Any:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows, which forks no process
        return bytearray(size)
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_DONTFORK"):  # Linux
        buffer.madvise(mmap.MADV_DONTFORK)
    return buffer


def _has_storage(tensor: torch.Tensor) -> bool:
    """Whether the bytes of a tensor are all in its storage, of which there are some."""
    odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg()
    return not odd and tensor.untyped_storage().nbytes() > 0


def _collect(tensor: torch.Tensor, storages: dict[int, Any]) -> torch.Tensor:
    if _has_storage(tensor):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
    return tensor


def _copied(tensor: torch.Tensor, copies: Mapping[int, Any]) -> torch.Tensor:
    if _has_storage(tensor):
        place = tensor.storage_offset(), tensor.size(), tensor.stride()
        copy = torch.empty(0, dtype=tensor.dtype, device="cpu").set_(copies[tensor.untyped_storage()._cdata], *place)
    else:
        copy = tensor.detach().cpu().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad)


@contextmanager
def closed_in_workers(file: IO[Any]) -> Iterator[None]:
    """Let processes that are forked within the block close a file, which a deleted state would fill the disk with."""
    _files.add(file.fileno())
    try:
        yield
    finally:
        _files.discard(file.fileno())


def _let_go() -> None:
    for descriptor in _files:
        with suppress(OSError):
            os.close(descriptor)
    _files.clear()


if hasattr(os, "register_at_fork"):  # Windows forks no process
    os.register_at_fork(after_in_child=_let_go)


class BackgroundWork(Generic[T]):
    """One piece of work at a time, in a thread. It makes no collective, which the main thread makes meanwhile."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._result: T | None = None
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], T]) -> None:
        """Begin a piece of work; the result of the one before has been taken."""
        self._thread = Thread(target=self._do, args=(work,), name="timm_accel_background")
        self._thread.start()

    def _do(self, work: Callable[[], T]) -> None:
        try:
            self._result = work()
        except BaseException as error:
            self._error = error

    def has_ended(self) -> bool:
        """Whether there is a result that has not been taken, so that `result` does not wait."""
        return self._thread is not None and not self._thread.is_alive()

    def result(self) -> T | None:
        """Wait for the work, and return or raise once what it returned or raised; None where there was none."""
        if self._thread is not None:
            self._thread.join()
        result, error = self._result, self._error
        self._thread = self._result = self._error = None
        if error is not None:
            raise error
        return result

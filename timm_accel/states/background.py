"""A write beside the training: the copies that it writes, and the thread in which it runs.

Loader workers may be forked meanwhile. The thread takes no lock that a worker uses, and a worker lets go of its files
and copies at once: otherwise a deleted state would take disk and memory as long as the worker lives.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import IO, Any, Generic, TypeVar
from weakref import WeakSet

import torch
import torch.utils.serialization.config  # by `torch.save`: a worker forked during an import may never import that
from torch import nn

from timm_accel.states.plain import plain

T = TypeVar("T")
_files: set[int] = set()  # the descriptors of what is being written


class HostCopies:
    """Copies of all tensors of a value, on the host. Tensors that share memory share that of their copies.

    Args:
        value: Tensors and plain values.
        where: What it is, for the message.

    Raises:
        TypeError: Something in it is neither a tensor nor a plain value.
    """

    def __init__(self, value: Any, where: str) -> None:
        self._storages: dict[int, tuple[Any, Any]] = {}  # the originals too, so that no address comes twice
        _copies.add(self)
        self.value = plain(value, where, self._copy)
        self._storages = {address: (None, copy) for address, (_, copy) in self._storages.items()}

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            copy = tensor.detach().cpu().clone()  # has no storage that can be copied alone
        else:
            place = tensor.storage_offset(), tensor.size(), tensor.stride()
            copy = torch.empty(0, dtype=tensor.dtype).set_(self._storage(tensor.untyped_storage()), *place)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copy, tensor.requires_grad)
        return copy.requires_grad_(tensor.requires_grad)

    def _storage(self, storage: Any) -> Any:
        if storage._cdata not in self._storages:
            copy = storage.clone() if storage.device.type == "cpu" else storage.cpu()
            self._storages[storage._cdata] = storage, copy
        return self._storages[storage._cdata][1]

    def free(self) -> None:
        """Give the memory of the copies back, also where something else holds them."""
        for _, copy in self._storages.values():
            copy.resize_(0)


_copies: "WeakSet[HostCopies]" = WeakSet()


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
    for copies in list(_copies):
        copies.free()


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

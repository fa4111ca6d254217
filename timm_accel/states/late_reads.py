"""Values of a GPU that the host reads one sync point late, so that no update waits for them."""

from collections.abc import Callable
from typing import Any

import torch

Look = Callable[[torch.Tensor], Any]
Copying = tuple[torch.Tensor, Callable[[], Any]]
"""A copy in host memory, and what waits until it is complete."""


def copy_from_gpu(value: torch.Tensor) -> Copying | None:
    """Begin to copy a tensor into pinned memory; None for one that is not on a GPU."""
    if not value.is_cuda:
        return None
    copy = value.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(value.device))
    return copy, copied.synchronize


class LateReads:
    """Copies of tensors on their way to the host, each looked at one sync point after it began.

    Until then a GPU has long computed the value, so that nothing waits for it. The value is that of the moment at which
    the copy began, whatever becomes of the tensor. Values that are not on a GPU are looked at at once.

    Args:
        begin_copy: Begins to copy a tensor; None for a tensor that is to be looked at at once.
    """

    def __init__(self, begin_copy: Callable[[torch.Tensor], Copying | None] = copy_from_gpu) -> None:
        self._begin_copy = begin_copy
        self._begun: list[tuple[Copying, Look]] = []
        self._due: list[tuple[Copying, Look]] = []

    def begin(self, value: torch.Tensor, look: Look) -> None:
        """Begin to copy a tensor; `look` is called with the copy at the next sync point."""
        copying = self._begin_copy(value)
        if copying is None:
            look(value)
        else:
            self._begun.append((copying, look))

    def look(self) -> None:
        """Look at what began before the last sync point."""
        due, self._due, self._begun = self._due, self._begun, []
        for (copy, wait), look in due:
            wait()
            look(copy)

    def look_at_all(self) -> None:
        """Look at everything, in the order in which it began. Waits for the device."""
        self.look()
        self.look()

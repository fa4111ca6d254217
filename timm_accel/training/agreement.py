"""How the processes of a run decide together: one small reduction on the host, at agreed moments."""

from functools import cache
from typing import Any

import torch
from torch import distributed


@cache
def _host_group(everyone: Any) -> Any:
    """Return the group that reduces on the host, made once for each process group."""
    return everyone if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


class Agreement:
    """A wish to stop that any process may have and that all of them act on together.

    The reduction runs on host memory (gloo), so it waits for no device.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self.reason: str | None = None
        self.failed = False
        self._group = _host_group(distributed.group.WORLD) if num_processes > 1 else None

    def ask_to_stop(self, reason: str, failed: bool) -> None:
        """Remember this process's wish until the next `reached`. The first stands, but before one that failed."""
        if self.reason is None or (failed and not self.failed):
            self.reason, self.failed = reason, failed

    def reached(self) -> bool:
        """Whether any process wants to stop; then `reason` and `failed` are the same on all. Collective."""
        if self.num_processes == 1:
            return self.reason is not None
        wishes = torch.tensor([int(self.reason is not None)])
        distributed.all_reduce(wishes, op=distributed.ReduceOp.MAX, group=self._group)
        if not wishes.any():
            return False
        everyone: list[tuple[str | None, bool]] = [(None, False)] * self.num_processes
        distributed.all_gather_object(everyone, (self.reason, self.failed), group=self._group)
        self.reason, self.failed = max((wish for wish in everyone if wish[0] is not None), key=lambda wish: wish[1])
        return True

"""How the processes of a run decide together: one small reduction on the host, at agreed moments."""

from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import distributed

T = TypeVar("T")


@cache
def _host_group(everyone: Any) -> Any:
    """Return the group that reduces on the host, made once for each process group."""
    return everyone if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


class Stop(IntEnum):
    """Why a run ends before its last epoch; of several wishes the gravest stands."""

    INTERRUPTED = 1  # of a run that is over anyway nothing is left to go on with
    FINISHED = 2
    FAILED = 3


class Wishes(NamedTuple):
    """What was agreed: whether to stop, and how, with the reason; whether to save, and to keep that state for good."""

    stop: Stop | None = None
    reason: str = ""
    save: bool = False
    milestone: bool = False


class Agreement:
    """Wishes to stop and to save, that any process may have and that all of them act on together.

    The reduction runs on host memory (gloo), so it waits for no device.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._stop: tuple[Stop, str] | None = None  # apart from the others: a signal sets it at any moment
        self._save = self._milestone = self._shared = False
        self._group = _host_group(distributed.group.WORLD) if num_processes > 1 else None

    def ask_to_stop(self, stop: Stop, reason: str) -> None:
        """Remember this process's wish until the next agreement. The first stands, but before a graver one."""
        if self._stop is None or stop > self._stop[0]:
            self._stop = stop, reason

    def ask_to_save(self, milestone: bool, shared: bool) -> None:
        """Remember this process's wish; `shared`: every process has it at this same moment."""
        self._save = True
        self._milestone |= milestone
        self._shared |= shared

    def due(self) -> bool:
        """Whether all processes know without asking that there is something to agree on."""
        return self._shared or (self.num_processes == 1 and (self._save or self._stop is not None))

    def reach(self) -> Wishes:
        """Return what any process wishes, the same on all, and forget it. Collective."""
        asked, self._stop = self._stop, None
        stop, reason = asked or (None, "")
        wishes = Wishes(stop, reason, self._save, self._milestone)
        self._save = self._milestone = self._shared = False
        if self.num_processes == 1:
            return wishes
        flags = torch.tensor([wishes.stop or 0, wishes.save, wishes.milestone], dtype=torch.int32)
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX, group=self._group)
        gravest, save, milestone = flags.tolist()
        reason = ""
        if gravest:
            everyone: list[tuple[int, str]] = [(0, "")] * self.num_processes
            distributed.all_gather_object(everyone, (wishes.stop or 0, wishes.reason), group=self._group)
            reason = next(text for kind, text in everyone if kind == gravest)
        return Wishes(Stop(gravest) if gravest else None, reason, bool(save), bool(milestone))

    def gather(self, value: T) -> list[T]:
        """Return every process's value on the first process, and nothing on the others. Collective."""
        if self.num_processes == 1:
            return [value]
        everyone: list[Any] | None = [None] * self.num_processes if distributed.get_rank() == 0 else None
        distributed.gather_object(value, everyone, dst=0, group=self._group)
        return everyone or []


def on_main_process(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Return what `work` returns on the main process, or raise what it raises there, on all of them. Collective."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]

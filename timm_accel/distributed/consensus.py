"""How the ranks of a run reach a consensus: a few small messages on the host at each sync point."""

import os
import pickle
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import distributed

from timm_accel.distributed.connections import timeout
from timm_accel.messages import one_line

T = TypeVar("T")


_host_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # a group that is kept to the exit aborts there


def _host_group() -> Any:
    """Return the group that reduces on the host; each process group has one."""
    world = distributed.group.WORLD
    if distributed.get_backend() == "gloo":
        return world
    known = _host_groups.get(world)
    if known is None or known() is None:
        _host_groups[world] = known = ref(distributed.new_group(backend="gloo", timeout=timeout(os.environ)))
    return known()


class Stop(IntEnum):
    """Why a run ends before its last epoch, in the order of priority."""

    INTERRUPTED = 1  # a finished run cannot resume, so FINISHED has priority
    FINISHED = 2
    FAILED = 3


class Requests(NamedTuple):
    """What the processes request: to stop, how and why; to save, and to keep that state forever; to tell of a write."""

    stop: Stop | None = None
    reason: str = ""
    save: bool = False
    milestone: bool = False
    outcome: bool = False


class Consensus:
    """Requests to stop and to save, which any process may make and all processes act on together.

    The messages go through host memory (gloo), so they wait for no device.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._stop: tuple[Stop, str] | None = None  # separate, since a signal handler sets it at any moment
        self._save = self._milestone = self._everywhere = self._outcome = False

    def request_stop(self, stop: Stop, reason: str) -> None:
        """Request to stop at the next sync point. The first request wins, unless a later one has priority."""
        if self._stop is None or stop > self._stop[0]:
            self._stop = stop, reason

    def request_save(self, milestone: bool, everywhere: bool) -> None:
        """Request to save at the next sync point; `everywhere` means that every process requests it at this moment."""
        self._save = True
        self._milestone |= milestone
        self._everywhere |= everywhere

    def request_outcome(self) -> None:
        """Request that all processes learn at the next sync point how a write of this one has ended."""
        self._outcome = True

    def due(self) -> bool:
        """Whether all processes know without communication that there is a request."""
        return self._everywhere or (self.num_processes == 1 and (self._save or self._stop is not None))

    def sync(self, before_acting: Callable[[], Any]) -> Requests:
        """Return the requests of all processes, the same on each, and clear them. Collective.

        Args:
            before_acting: Called on each process before all save or stop; it may request to stop.
        """
        requests = self._exchange()
        if not (requests.save or requests.stop):
            return requests
        before_acting()
        later = self._exchange()
        stops = later if (later.stop or 0) > (requests.stop or 0) else requests
        save, milestone, outcome = (either or other for either, other in zip(requests[2:], later[2:], strict=True))
        return Requests(stops.stop, stops.reason, save, milestone, outcome)

    def _exchange(self) -> Requests:
        requested, self._stop = self._stop, None
        stop, reason = requested or (None, "")
        requests = Requests(stop, reason, self._save, self._milestone, self._outcome)
        self._save = self._milestone = self._everywhere = self._outcome = False
        if self.num_processes == 1:
            return requests
        highest_priority, *others = _max_over_ranks([stop or 0, *requests[2:]])
        reason = ""
        if highest_priority:
            everyone = gather_on_all((requests.stop or 0, requests.reason), self.num_processes)
            reason = next(text for kind, text in everyone if kind == highest_priority)
        return Requests(Stop(highest_priority) if highest_priority else None, reason, *map(bool, others))

    def sum(self, value: int) -> int:
        """Return the sum of every process's value. Collective."""
        if self.num_processes == 1:
            return value
        total = torch.tensor(value)
        distributed.all_reduce(total, group=_host_group())
        return int(total)

    def gather(self, value: T) -> list[T]:
        """Return every process's value on rank 0, and nothing on the others. Collective."""
        if self.num_processes == 1:
            return [value]
        everyone: list[Any] | None = [None] * self.num_processes if distributed.get_rank() == 0 else None
        distributed.gather_object(value, everyone, dst=0, group=_host_group())
        return everyone or []


def _max_over_ranks(numbers: Sequence[int]) -> list[int]:
    """Return the largest of every process's numbers, place by place. Collective.

    Each process sends what it knows to the process 1, 2, 4, … ranks further, so that all know the maximum after log2 n
    messages in turn; gloo's reduction goes around a ring, 2 (n - 1) messages in turn. All receipts are announced before
    the first message, which spares each message the wait for its announcement.
    """
    rank, num_processes, group = distributed.get_rank(), distributed.get_world_size(), _host_group()
    known = torch.tensor(numbers, dtype=torch.int32)
    distances = [2**doublings for doublings in range((num_processes - 1).bit_length())]
    parcels = [torch.empty_like(known) for _ in distances]
    sources = [(rank - distance) % num_processes for distance in distances]
    receipts: list[Any] = [distributed.irecv(*each, group=group) for each in zip(parcels, sources, strict=True)]
    sent: list[Any] = []
    for distance, parcel, receipt in zip(distances, parcels, receipts, strict=True):
        sent.append(distributed.isend(known, (rank + distance) % num_processes, group=group))
        receipt.wait()
        known = torch.maximum(known, parcel)  # a new tensor, since the one before may still be on its way
    for message in sent:
        message.wait()
    return known.tolist()


def min_over_ranks(value: int, num_processes: int) -> int:
    """Return the smallest of every process's value, on host memory. Collective."""
    if num_processes == 1:
        return value
    smallest = torch.tensor(value)
    distributed.all_reduce(smallest, op=distributed.ReduceOp.MIN, group=_host_group())
    return int(smallest)


def gather_on_all(value: T, num_processes: int) -> list[T]:
    """Return every process's value, in the order of the ranks, on all of them; on host memory. Collective."""
    if num_processes == 1:
        return [value]
    everyone: list[Any] = [None] * num_processes
    distributed.all_gather_object(everyone, value, group=_host_group())
    return everyone


def gather_numbers(numbers: Sequence[int]) -> list[list[int]]:
    """Return every process's numbers by rank, on each; all give equally many. Collective."""
    group, own = _host_group(), torch.tensor([*map(int, numbers)])
    everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, own, group=group)
    return [each.tolist() for each in everyone]


def send_to(ranks: Sequence[int], sender: int, content: bytes) -> bytes:
    """Return the sender's content, which it sends to some ranks, on itself and on these; on host memory.

    Args:
        ranks: The ranks that get it. Each of them calls this too.
        sender: The rank that sends.
        content: The content, on the sender.
    """
    group, parcel = _host_group(), [content]
    if distributed.get_rank() == sender:
        for rank in ranks:
            distributed.send_object_list(parcel, dst=rank, group=group)
    else:
        distributed.recv_object_list(parcel, src=sender, group=group)
    return parcel[0]


def agreed(work: Callable[[], T], num_processes: int) -> T:
    """Return what `work` returns on this process, or raise on all processes what it raises on one. Collective."""
    if num_processes == 1:
        return work()
    result, raised = None, None
    try:
        result = work()
    except Exception as error:
        raised = error
    everyone = gather_on_all(None if raised is None else _as_sent(raised), num_processes)
    if (first := next(filter(None, everyone), None)) is not None:
        raise first from raised
    return result  # type: ignore[return-value]


def _as_sent(error: Exception) -> Exception:
    """Return an error that other processes can make again."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # a class with other arguments, or with content that stays here
        return RuntimeError(one_line(error, limit=None))


def from_main_process(value: T) -> T:
    """Return the value of rank 0, sent through host memory. Collective."""
    sent: list[Any] = [value]
    distributed.broadcast_object_list(sent, src=0, group=_host_group())
    return sent[0]


def on_main_process(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Return what `work` returns on rank 0, or raise what it raises there, on all processes. Collective."""
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

"""The batches of a dataset, shared among the processes of a launch, and their results in order on all of them.

Each process computes every n-th batch of those that one process alone would have. A batch thus holds the same images on
any number of processes, and what a model makes of it is equal to the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from timm_accel.distributed.consensus import agreed, gather_on_all, on_main_process
from timm_accel.distributed.processes import on_each_host, process_state

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The share of one process; by default it is alone and computes everything.

    Args:
        rank: The rank of the process.
        num_processes: The number of processes that share.
    """

    rank: int = 0
    num_processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that shows a bar and writes files."""
        return self.rank == 0

    def owns(self, batch: int) -> bool:
        """Return whether this process computes the batch of this number."""
        return batch % self.num_processes == self.rank

    def batches(self, num_images: int, batch_size: int) -> list[range]:
        """Return the indices of the images of each batch of this process. Collective.

        Args:
            num_images: The number of all images.
            batch_size: Images at a time.

        Raises:
            ValueError: The processes have other numbers of images.
        """
        counts = gather_on_all(num_images, self.num_processes)
        if len(set(counts)) > 1:
            raise ValueError(
                f"Expected the same images on all processes, since they share them, but got {counts} images on ranks 0 "
                f"to {len(counts) - 1}. Give each process the same data."
            )
        starts = range(self.rank * batch_size, num_images, batch_size * self.num_processes)
        return [range(start, min(start + batch_size, num_images)) for start in starts]

    def agreed(self, work: Callable[[], T]) -> T:
        """Return what `work` returns on this process, or raise on all processes what it raises on one. Collective."""
        return agreed(work, self.num_processes)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Return what `work` returns on each process, in the order of the ranks; errors as in `agreed`. Collective."""
        return gather_on_all(agreed(work, self.num_processes), self.num_processes)

    def of_first(self, work: Callable[[], T]) -> T:
        """Return what `work` returns on rank 0, on all processes; errors as in `agreed`. Collective."""
        return work() if self.num_processes == 1 else on_main_process(process_state(), work)

    def leave(self) -> None:
        """End the process group of the launch, after the last call."""
        if self.num_processes > 1:
            process_state().destroy_process_group()

    def on_each_host(self, work: Callable[[], T]) -> T:
        """Return what `work` returns on one process of each host; errors as in `agreed`. Collective."""
        return work() if self.num_processes == 1 else on_each_host(process_state(), work)


def share_of_process(share: bool) -> Share:
    """Return the share of this process in a launch, or that of one that is alone.

    Args:
        share: Whether to share at all. Otherwise nothing is asked of a launch, which one process may then do alone.

    Raises:
        ValueError: The launched processes do not run together.
    """
    if not share:
        return Share()
    state = process_state()
    return Share(state.process_index, state.num_processes)


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """Return the results of all batches in order, from those of each process.

    >>> interleaved([["a", "d"], ["b"], ["c"]])
    ['a', 'b', 'c', 'd']
    """
    results: list[T | None] = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        results[rank :: len(parts)] = part
    return results  # type: ignore[return-value]

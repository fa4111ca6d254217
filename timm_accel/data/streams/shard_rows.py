"""The rows of shards for one of several readers, in a shuffled order in which the rows that were seen are not read."""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, TypeVar

T = TypeVar("T")

INTERLEAVED = 10
"""The shards of a reader that take turns, as in the shuffle of ``datasets`` (5.2)."""


class ShardRows:
    """The rows of parts of shards: the parts take turns, and a buffer shuffles what they give.

    The order follows from the numbers of rows and the seed alone. So it is known without reading which rows come first,
    and those before the first row that is still to come are not read.

    Args:
        parts: The shards with the rows of each, from `ranges`.
        read: Returns some rows of a shard, given the shard and a range of its rows.
        size: The rows in the buffer; 1 keeps the order of the turns.
        seed: The seed of the buffer.
        passed: The rows that are passed over, one iteration after the other.
        stand_in: What is given instead of each of these.
        width: The parts that take turns; 1 for one part after the other.

    Raises:
        OSError: A shard has fewer rows than at the start, while iterating.
    """

    def __init__(
        self,
        parts: Sequence[tuple[int, range]],
        read: Callable[[int, range], Iterable[Any]],
        size: int,
        seed: int,
        passed: int = 0,
        stand_in: Any = None,
        width: int = INTERLEAVED,
    ) -> None:
        self.parts, self._read, self.size, self.seed, self.width = parts, read, size, seed, width
        self._passed, self._stand_in = passed, stand_in

    def set_epoch(self, epoch: int) -> None:
        """Do nothing, since shards and seed are already those of the epoch; timm's readers call this."""

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)

    def __iter__(self) -> Iterator[Any]:
        passed = min(self._passed, len(self))
        self._passed -= passed
        to_come = islice(self._buffered(range(len(self))), passed, None) if passed else (0,)
        first = min(to_come, default=len(self))
        rows = self._buffered(chain(repeat(None, first), self._rows(first)))
        return chain(repeat(self._stand_in, passed), islice(rows, passed, None))

    def _rows(self, first: int) -> Iterator[Any]:
        """Yield the rows from a position on, in the order of the turns."""
        turns = take_turns([len(rows) for _, rows in self.parts], self.width)
        before, opened = Counter(islice(turns, first)), dict[int, Iterator[Any]]()
        for part in turns:
            if part not in opened:
                shard, rows = self.parts[part]
                opened[part] = iter(self._read(shard, rows[before[part] :]))
            row = next(opened[part], None)
            if row is None:
                shard, rows = self.parts[part]
                raise OSError(
                    f"Expected shard {shard} of a stream to have {rows.stop} images, as at the start, but got fewer. "
                    "Write it again."
                )
            yield row

    def _buffered(self, rows: Iterable[T]) -> Iterator[T]:
        draws, held = random.Random(self.seed), list[T]()
        for row in rows:
            if len(held) < self.size:
                held.append(row)
                continue
            index = draws.randrange(self.size)
            held[index], row = row, held[index]
            yield row
        draws.shuffle(held)
        yield from held


def take_turns(lengths: Sequence[int], width: int) -> Iterator[int]:
    """Yield the number of a part for each of its items: `width` parts take turns, and where one ends the next begins.

    >>> list(take_turns([1, 3, 2], 2))
    [0, 1, 2, 1, 2, 1]

    Args:
        lengths: The items of each part.
        width: The parts that take turns.
    """
    waiting = iter([part, length] for part, length in enumerate(lengths) if length)
    active = deque(islice(waiting, width))
    while active:
        turn = active.popleft()
        yield turn[0]
        turn[1] -= 1
        if following := turn if turn[1] else next(waiting, None):
            active.append(following)

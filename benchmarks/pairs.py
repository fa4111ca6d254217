"""Time several ways of doing the same in turn, A B B A, so that a change of the machine's speed meets all of them.

torch.utils.benchmark, timeit and pytest-benchmark measure one way after the other, and compare medians of different
minutes. Here each round calls every way, and ratios are taken within a round.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import Table

UNITS = {"s": 1, "ms": 1e3, "µs": 1e6}


@dataclass(frozen=True)
class Pairs:
    """What `in_turn` measured: the seconds of each way, one value per round."""

    seconds: dict[str, list[float]]

    def ratios(self, way: str, other: str) -> list[float]:
        """Return the time of a way over that of another, round by round."""
        return [own / theirs for own, theirs in zip(self.seconds[way], self.seconds[other], strict=True)]

    def table(self, name: str, unit: str = "ms") -> Table:
        """Return a row for each way: its time, and that over the time of the first way."""
        return together(name, {"": self}, unit)


def together(name: str, measured: Mapping[str, Pairs], unit: str = "ms") -> Table:
    """Return the rows of several measurements of the same ways, with their titles before them.

    Args:
        name: That of the table.
        measured: The measurements by title.
        unit: The unit of times: ``s``, ``ms`` or ``µs``.
    """
    rows = []
    for title, pairs in measured.items():
        first = next(iter(pairs.seconds))
        for way, taken in pairs.seconds.items():
            times = spread([UNITS[unit] * each for each in taken])
            rows.append([title, way, times, "" if way == first else spread(pairs.ratios(way, first), 3)])
    columns = ["", "way", f"{unit}, median (min to max)", f"time over {first}, pair by pair, median (min to max)"]
    alone = len(measured) == 1
    return Table(name, columns[alone:], [row[alone:] for row in rows])


def in_turn(ways: Mapping[str, Callable[[], Any]], rounds: int, count: int = 1) -> Pairs:
    """Call each way once per round, every second round in reverse order, after a round that warms up.

    Args:
        ways: Functions by name. One that returns a float has measured its seconds itself; others are timed.
        rounds: The number of rounds that count.
        count: The number of steps or images in a call; the seconds are of one of them.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            measured = ways[way]()
            taken = measured if isinstance(measured, float) else time.perf_counter() - began
            if number > 0:
                seconds[way].append(taken / count)
    return Pairs(seconds)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return ``"2.00 (1.00 to 5.00)"``: the median, the minimum and the maximum."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

"""The order of rows for a reader of shards, and what is not read of it."""

from collections import Counter
from itertools import islice
from typing import Any

import pytest
from refusal import refused

from timm_accel.data.streams.shard_rows import INTERLEAVED, ShardRows, take_turns

PARTS = [(3, range(2, 9)), (0, range(5)), (1, range(4, 10)), (2, range(1))]
LENGTHS = [7, 5, 6, 1]


class Shards:
    """Notes what is read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def rows(self, shard: int, rows: range) -> Any:
        for row in rows:
            self.read.append((shard, row))
            yield shard, row


def rows(size: int = 4, seed: int = 0, passed: int = 0, parts: Any = PARTS) -> tuple[ShardRows, Shards]:
    shards = Shards()
    return ShardRows(parts, shards.rows, size, seed, passed, stand_in="seen"), shards


def test_each_row_comes_once_in_an_order_of_the_seed() -> None:
    every = {(shard, row) for shard, numbers in PARTS for row in numbers}
    orders = [list(rows(seed=seed)[0]) for seed in (0, 0, 1)]
    assert all(len(order) == 19 and {*order} == every for order in orders)
    assert orders[0] == orders[1] != orders[2]
    again, _ = rows()
    assert list(again) == list(again) == orders[0]


def test_a_buffer_of_one_keeps_the_order_of_the_turns() -> None:
    taken, shards = rows(size=1)
    order = list(taken)
    assert order == shards.read
    assert [shard for shard, _ in order[:8]] == [3, 0, 1, 2, 3, 0, 1, 3]
    assert [row for shard, row in order if shard == 3] == list(range(2, 9))


def test_a_buffer_holds_no_more_rows_than_its_size() -> None:
    taken, shards = rows(size=4)
    for given, _ in enumerate(taken, 1):
        assert len(shards.read) - given <= 4


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("passed", [1, 6, 18, 19, 20, 30, 38])
def test_rows_that_were_seen_are_passed_over_and_the_rest_is_as_without(size: int, passed: int) -> None:
    whole = [*rows(size)[0], *rows(size)[0]]
    resumed, shards = rows(size, passed=passed)
    both = [*resumed, *resumed]
    assert both == ["seen"] * passed + whole[passed:]
    needed = Counter(whole[passed:])
    assert not needed - Counter(shards.read)
    if size == 1:  # nothing that was seen is read
        assert shards.read == whole[passed:]


def test_of_many_rows_only_those_near_the_position_are_read_again() -> None:
    parts = [(shard, range(1000)) for shard in range(12)]
    resumed, shards = rows(size=50, passed=9000, parts=parts)
    next(islice(resumed, 9000, None))
    assert len(shards.read) < 1000  # of 9,000: those that have been in the buffer for long
    begun = dict(reversed(shards.read))
    assert min(begun.values()) > 500


def test_parts_take_turns_and_one_that_ends_makes_room() -> None:
    assert list(take_turns([1, 3, 2], 2)) == [0, 1, 2, 1, 2, 1]
    assert list(take_turns([2, 0, 1], 1)) == [0, 0, 2]
    assert list(take_turns([], 3)) == []
    assert INTERLEAVED == 10
    order = list(take_turns([100] * 11, INTERLEAVED))
    assert 10 not in order[:991]
    assert Counter(order) == dict.fromkeys(range(11), 100)


def test_a_shard_that_has_become_shorter_is_an_error_that_names_it() -> None:
    with refused(OSError, "shard 3 of a stream to have 9 images", "fewer", "Write it again"):
        list(ShardRows(PARTS, lambda shard, rows: iter(rows[:3]), 4, 0))

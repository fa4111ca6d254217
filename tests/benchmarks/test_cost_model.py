"""The model of a run's cost gives values worked out by hand, and its options move what they say."""

from dataclasses import replace

import pytest
import torch
from timm import create_model

from benchmarks import cost_model
from benchmarks.cost_model import (
    MIB,
    MOVES,
    PARAMETERS,
    Machines,
    Network,
    Training,
    buckets,
    cost,
    exposed,
    limit,
    predicted,
)

RING = Network(bandwidth=100.0, latency=0.5)
TRAINING = Training(images=100, parameters=50, batch_size=5, rate=10.0)
ONE = Machines(1, RING, RING, input_rate=1e9)


@pytest.mark.parametrize(
    ("ranks", "is_tree", "seconds"),
    [(1, False, 0), (2, False, 3 + 2), (4, False, 4.5 + 6), (4, True, 4.5 + 2), (6, True, 5 + 3)],
)
def test_an_all_reduce_moves_the_bytes_twice_and_waits_for_messages(ranks: int, is_tree: bool, seconds: float) -> None:
    assert replace(RING, is_tree=is_tree).all_reduce(300, ranks) == pytest.approx(seconds)


@pytest.mark.parametrize(("ranks", "latencies"), [(1, 0), (2, 1 + 1), (3, 2 + 1), (8, 3 + 1), (9, 4 + 1), (1024, 11)])
def test_a_sync_point_takes_a_latency_for_each_doubling_of_the_ranks(ranks: int, latencies: int) -> None:
    assert RING.sync_point(ranks) == latencies * 0.5


@pytest.mark.parametrize(("ranks", "latencies"), [(1, 0), (2, 4), (8, 16)])
def test_a_state_waits_for_objects_whose_sizes_go_around_the_ring(ranks: int, latencies: int) -> None:
    assert RING.gather(ranks) == latencies * 0.5
    without, with_state = (cost(replace(TRAINING, states=states), replace(ONE, ranks=ranks)) for states in (0, 1))
    assert with_state["states"] - cost(TRAINING, ONE)["states"] == pytest.approx(latencies * 0.5)
    assert with_state["sync points"] - without["sync points"] == RING.sync_point(ranks)


def test_sync_points_take_a_thousandth_of_the_time_with_1024_gpus() -> None:
    parts = predicted("resnet50", 1_000, 1024, "8 × 400 Gb/s")
    assert parts["sync points"] == pytest.approx((40 / 10 + 3 + 1) * 11 * 25e-6)
    assert parts["sync points"] / sum(parts.values()) == pytest.approx(0.001, abs=0.0005)


@pytest.mark.parametrize(
    ("mib", "sizes"), [(0.5, [0.5]), (1, [1]), (11, [1, 10]), (60, [1, 25, 25, 9])], ids=lambda value: str(value)
)
def test_gradients_are_sent_in_the_buckets_of_ddp(mib: float, sizes: list[float]) -> None:
    assert buckets(mib * MIB) == [size * MIB for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "backward", "seconds"),
    [
        ([10], 100, 10),  # one bucket is full at the end
        ([10, 10], 100, 10),  # the first one arrives while the second is filled
        ([10, 10], 4, 2 + 20 - 4),  # both must be sent, the first from the middle on
        ([30, 10], 40, 30 + 30 + 10 - 40),  # full at 30 and 40, the second arrives after the first
    ],
)
def test_an_update_waits_for_what_the_backward_pass_does_not_hide(
    sizes: list[float], backward: float, seconds: float
) -> None:
    assert exposed(sizes, backward, lambda size: size) == pytest.approx(seconds)


def test_one_process_computes_and_evaluates_and_saves() -> None:
    parts = cost(TRAINING, ONE)
    assert parts["compute"] == 100 / 10
    assert parts["all-reduce"] == parts["input"] == parts["sync points"] == 0
    assert parts["evaluation"] == pytest.approx(50_000 * 2 / 3 / 10)


def test_gradients_sync_points_and_slow_loaders_add_up() -> None:
    training = replace(TRAINING, sync_every=5, states=0)
    parts = cost(training, replace(ONE, ranks=2, input_rate=2.0))
    assert parts["compute"] == 10 * 0.5
    assert parts["all-reduce"] == pytest.approx(10 * (200 / 100 + 4 * 0.5))  # one bucket, which nothing hides
    assert parts["input"] == 0  # 2.5 s of an update, in which 4.5 s have passed
    assert parts["sync points"] == pytest.approx((10 / 5 + 3) * 2 * 0.5)
    assert cost(training, replace(ONE, ranks=2, input_rate=1.0))["input"] == pytest.approx(10 * (5 - 4.5))


def test_accumulation_shares_one_all_reduce_among_its_micro_batches() -> None:
    machines = replace(ONE, ranks=2)
    once, four = (cost(replace(TRAINING, accumulation=count, images=80), machines) for count in (1, 4))
    assert four["compute"] == once["compute"]
    assert four["all-reduce"] == once["all-reduce"] / 4


def test_a_state_waits_for_its_copy_and_for_the_write_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_model, "COPY", 100.0)
    monkeypatch.setattr(cost_model, "WRITE", 50.0)  # 800 bytes: 8 s to copy, 16 s to write in 10 s of training
    assert cost(TRAINING, ONE)["states"] == pytest.approx(8 + 16 - 10)
    assert cost(replace(TRAINING, images=200), ONE)["states"] == pytest.approx(8)


def test_a_host_that_is_the_limit_makes_steps_no_shorter() -> None:
    assert cost(replace(TRAINING, floor=2.0), ONE)["compute"] == 20 * 2.0


@pytest.mark.parametrize(
    ("part", "case", "changes"),
    [
        ("all-reduce", ("vit_base", 21_841, 1024, "100 Gb/s"), {"accumulation": 4}),
        ("sync points", ("resnet50", 21_841, 1024, "8 × 400 Gb/s"), {"sync_every": 100}),
        ("evaluation", ("vit_base", 1_000, 8, ""), {"evaluations": 0}),
        ("states", ("vit_base", 1_000, 1024, "8 × 400 Gb/s"), {"states": 0}),
    ],
)
def test_what_is_said_to_move_a_part_moves_it(part: str, case: tuple, changes: dict[str, float]) -> None:
    before, after = predicted(*case), predicted(*case, **changes)
    assert after[part] < 0.6 * before[part]
    assert part in MOVES


def test_cores_move_the_input() -> None:
    few, many = (predicted("resnet50", 1_000, 8, "", input_rate=cores * 252.0) for cores in (4, 12))
    assert limit(few) == "input"
    assert many["input"] < 0.3 * few["input"]
    assert limit(predicted("resnet50", 1_000, 8, "")) == "compute"


def test_the_limit_is_the_longest_part_that_is_no_training() -> None:
    assert limit({"compute": 90.0, "input": 8.0, "states": 2.0}) == "input"
    assert limit({"compute": 97.0, "input": 1.0, "states": 2.0}) == "compute"


def test_parameters_are_those_of_the_models() -> None:
    for (name, num_classes), count in PARAMETERS.items():
        with torch.device("meta"):
            model = create_model({"vit_base": "vit_base_patch16_224"}.get(name, name), num_classes=num_classes)
        assert sum(parameter.numel() for parameter in model.parameters()) == count

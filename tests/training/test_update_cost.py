"""An update costs little more than that of a bare loop, in counts that do not depend on the machine."""

from inspect import signature

import accelerate.optimizer
import pytest
from torch.nn import functional

from benchmarks.contenders.bare import train as train_bare
from benchmarks.contenders.job import Job
from benchmarks.contenders.ours import train
from benchmarks.update_cost import PythonCalls, counts_of
from timm_accel.losses.divisors import Divisors

pytestmark = pytest.mark.filterwarnings("ignore:ema_decay=0.5 averages over")


@pytest.fixture(scope="module")
def more() -> dict[tuple[str, bool], dict[str, float]]:
    """What our update has more than the bare one, for models of different depth, with few and with all parts."""
    found = {}
    for name in ("test_resnet", "test_vit"):
        for all_parts in (False, True):
            ours, bare = (counts_of(loop, name, all_parts, 2, 6) for loop in (train, train_bare))
            assert bare["Python calls"] > 500
            found[name, all_parts] = {kind: ours[kind] - bare[kind] for kind in ours}
    return found


def test_an_update_has_at_most_250_python_calls_more_for_every_model(more: dict) -> None:
    assert max(counts["Python calls"] for counts in more.values()) <= 250
    assert abs(more["test_resnet", False]["Python calls"] - more["test_vit", False]["Python calls"]) <= 10


def test_ema_mixup_and_clipping_cost_fewer_calls_and_operators_than_timms_own(more: dict) -> None:
    for name in ("test_resnet", "test_vit"):
        for kind in ("Python calls", "operators"):
            assert more[name, True][kind] < more[name, False][kind]


def test_an_update_reads_nothing_from_device_or_disk(more: dict) -> None:
    for counts in more.values():
        assert counts["host reads"] == 0
        assert counts["file-system calls"] == 0
        assert counts["operators"] <= 13  # the sums of loss and divisors, and the check of the labels


def test_accelerate_has_its_own_lookup_again_after_a_run() -> None:
    lookup = accelerate.optimizer.is_lomo_available
    train(Job("test_resnet", 1))
    assert accelerate.optimizer.is_lomo_available is lookup


def test_a_file_that_is_read_counts(tmp_path) -> None:
    with PythonCalls() as calls:
        (tmp_path / "a.txt").exists()
    assert calls.counts["file-system calls"] == 1
    assert calls.counts["Python calls"] >= 1


@pytest.mark.parametrize("function", [functional.cross_entropy, functional.nll_loss])
def test_the_arguments_of_weighted_means_are_those_of_torch(function) -> None:
    known, ours = signature(function).parameters, signature(Divisors()._note).parameters
    assert list(known) == list(ours)[: len(known)]
    defaults = {name: each.default for name, each in known.items()}
    assert defaults == {name: ours[name].default for name in known}

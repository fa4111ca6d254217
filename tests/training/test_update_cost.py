"""An update costs little more than that of a bare loop, in counts that do not depend on the machine."""

from inspect import signature

import accelerate.optimizer
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3
from torch.nn import functional

from benchmarks.contenders.bare import train as train_bare
from benchmarks.contenders.job import Job
from benchmarks.contenders.ours import train
from benchmarks.update_cost import Operators, PythonCalls, counts_of
from timm_accel.losses.divisors import Divisors
from timm_accel.models import EmaUpdate
from timm_accel.training.gradient_group import zero_grad

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


def test_an_update_has_at_most_220_python_calls_more_for_every_model(more: dict) -> None:
    assert max(counts["Python calls"] for counts in more.values()) <= 220
    assert abs(more["test_resnet", False]["Python calls"] - more["test_vit", False]["Python calls"]) <= 10


def test_ema_mixup_and_clipping_cost_fewer_calls_and_operators_than_timms_own(more: dict) -> None:
    for name in ("test_resnet", "test_vit"):
        for kind in ("Python calls", "operators"):
            assert more[name, True][kind] < more[name, False][kind]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_an_update_of_the_ema_weights_costs_fewer_calls_and_operators_than_timms(name: str) -> None:
    model = timm.create_model(name)
    ema_model = ModelEmaV3(model)
    update, counts = EmaUpdate(ema_model, model), []
    for moved in (lambda: update(1), lambda: ema_model.update(model, step=1)):
        for counter in (PythonCalls(), Operators()):
            with counter:
                moved()
            counts.append(counter.counts)
    ours, timms = counts[0] + counts[1], counts[2] + counts[3]
    assert ours["Python calls"] <= 110 < timms["Python calls"] / 3
    assert ours["operators"] <= 17 < timms["operators"] / 9
    assert ours["host reads"] == 0


@pytest.mark.parametrize("default", [None, False, True])
def test_gradients_are_zeroed_as_accelerate_does(default: bool | None) -> None:
    class Optimizer(torch.optim.SGD):
        if default is None:

            def zero_grad(self) -> None:
                super().zero_grad(set_to_none=False)

        else:

            def zero_grad(self, set_to_none: bool = default) -> None:
                super().zero_grad(set_to_none=set_to_none)

    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = Optimizer([parameter], lr=0.1)
    Accelerator()
    left = []
    for zero in (AcceleratedOptimizer(optimizer).zero_grad, lambda: zero_grad(optimizer)):
        parameter.grad = torch.ones(1)
        zero()
        left.append(None if parameter.grad is None else parameter.grad.item())
    assert left == [0.0, 0.0] if default is None else left == [None, None]


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

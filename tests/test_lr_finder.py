"""The learning-rate finder leaves no trace, and its losses are those of the trainer."""

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from refusal import contents, refused
from resumed_runs import Augmented, make_run, same_outcome, train
from schedulefree import AdamWScheduleFree
from timm.optim import Lookahead
from timm.optim.adahessian import Adahessian
from tiny_runs import NO_WORKERS, differences, fit, make_trainer, tiny_data, tiny_model
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.lr_finder import LRRangeTest, _longest_fall, _suggest, find_lr
from timm_accel.mixins import DistillationMixin
from timm_accel.optim import create_optimizer

OPTIONS: dict[str, Any] = {
    "per_device_batch_size": 4,
    "train_dataloader_kwargs": NO_WORKERS,
    "num_updates": 12,
    "stop_at": 1e9,
}


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("between_runs", [False, True])
def test_a_run_after_a_range_test_has_the_bits_of_one_without(between_runs: bool, tmp_path: Path) -> None:
    def run(sweeps: bool, folder: Path) -> list[Any]:
        trainer = make_run(folder)
        seen = []
        if between_runs:
            trainer.run_dir = None
            trainer.callback_handler.callbacks, kept = [], trainer.callback_handler.callbacks
            trainer.keep_states, states = None, trainer.keep_states
            train(trainer, num_epochs=1)
            trainer.run_dir, trainer.keep_states, trainer.callback_handler.callbacks = folder, states, kept
        before = deepcopy(trainer.model.state_dict()), random_states(), deepcopy(trainer.run_history._metrics)
        if sweeps:
            ema_model = trainer.ema_model
            sweep = find_lr(trainer, Augmented(), **OPTIONS)
            assert len(sweep.losses) == 12
            assert not folder.exists()
            assert trainer.ema_model is ema_model
            after = trainer.model.state_dict(), random_states(), trainer.run_history._metrics
            assert not differences(before, after)
            assert all(parameter.grad is None for parameter in trainer.model.parameters())
        train(trainer)
        seen.append(random_states())
        return seen

    assert run(False, tmp_path / "plain") == run(True, tmp_path / "swept")
    assert same_outcome(tmp_path / "plain", tmp_path / "swept") is None
    assert contents(tmp_path / "plain").keys() == contents(tmp_path / "swept").keys()


class ScaledLoss(nn.Module):
    """A loss with a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(outputs, targets) * self.scale


def test_modes_gradients_attributes_and_the_losss_own_tensors_stay_as_well() -> None:
    model, loss = tiny_model(), ScaledLoss()
    model.train()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    before = list(vars(model)), [module.training for module in model.modules()]
    options = {"mixup_args": None, "num_class": 3, "ema_decay": 0.9998}  # of which a run so short would be warned
    trainer = make_trainer(TimmMixupTrainer, model, optimizer=optimizer, loss_func=loss, **options)
    find_lr(trainer, tiny_data(), **OPTIONS)
    assert before == (list(vars(model)), [module.training for module in model.modules()])
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert (loss.scale.item(), loss.calls.item()) == (1.0, 0.0)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
@pytest.mark.parametrize(
    "kind",
    [
        lambda parameters: Lookahead(Adahessian(parameters, lr=0.01, update_each=2), k=2),
        lambda parameters: AdamWScheduleFree(parameters, lr=0.01),
        lambda parameters: Lookahead(AdamWScheduleFree(parameters, lr=0.01), k=2),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ],
)
def test_an_optimizer_continues_as_if_nothing_had_been(kind: Any) -> None:
    def weights(sweeps: bool) -> dict[str, Any]:
        model = tiny_model()
        trainer = fit(make_trainer(TimmTrainer, model, optimizer=kind(model.parameters())), num_epochs=1)
        if sweeps:
            find_lr(trainer, tiny_data(), **OPTIONS)
        fit(trainer, num_epochs=1)
        return {"model": model.state_dict(), "optimizer": trainer.unwrapped_optimizer.state_dict()}

    assert not differences(weights(False), weights(True))


def test_the_projection_of_distillation_stays_as_well() -> None:
    teacher, student = (timm.create_model(f"test_{kind}", num_classes=3) for kind in ("resnet", "efficientnet"))
    trainer = make_trainer(DistillationMixin, student, distill_teacher=teacher, distill_kind="feature")
    projection = trainer.components()["distill_projection"]
    projection.weight.grad = torch.ones_like(projection.weight)
    before = {name: each.clone() for name, each in projection.state_dict().items()}
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    sweep = find_lr(trainer, data, **OPTIONS)
    assert len(sweep.losses) == 12
    assert not differences(before, dict(projection.state_dict()))
    assert torch.equal(projection.weight.grad, torch.ones_like(projection.weight))
    assert trainer.model is student


class Counter:
    """A stateful part."""

    def __init__(self) -> None:
        self.batches = [0]

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = list(state_dict["batches"])


def test_a_user_s_parts_and_all_that_the_optimizer_steps_stay_as_well() -> None:
    counter, norm, shift = Counter(), nn.BatchNorm1d(3), nn.Parameter(torch.zeros(3))

    class Shifted(LoopTrainer):
        """Steps a parameter of no module, gathers statistics, and counts batches."""

        def components(self) -> dict[str, Any]:
            return super().components() | {"counter": counter, "norm": norm, "head": self.unwrapped_model[5]}

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            counter.batches[0] += 1
            output = super().calculate_train_batch_loss(batch)
            norm(output["model_outputs"].detach())
            return output | {"loss": output["loss"] + shift.sum()}

    model = tiny_model()
    model[5].weight.grad = torch.ones_like(model[5].weight)  # of the model and of a part
    optimizer = torch.optim.SGD([*model.parameters(), shift], lr=0.1)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    find_lr(make_trainer(Shifted, model, optimizer=optimizer), tiny_data(), **OPTIONS)
    assert (counter.batches, norm.num_batches_tracked.item(), norm.running_mean.tolist()) == ([0], 0, [0, 0, 0])
    assert (shift.tolist(), shift.grad) == ([0, 0, 0], None)
    assert not differences(before, dict(model.state_dict()))
    assert torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight))


def test_even_an_error_within_the_range_test_leaves_no_trace() -> None:
    class Failing(TimmTrainer):
        def after_update(self) -> None:
            super().after_update()
            if self.num_updates == 3:
                raise KeyboardInterrupt

    trainer = make_trainer(Failing)
    before = deepcopy(trainer.model.state_dict()), random_states(), vars(trainer).keys()
    with pytest.raises(KeyboardInterrupt):
        find_lr(trainer, tiny_data(), **OPTIONS)
    assert not differences(before, (trainer.model.state_dict(), random_states(), vars(trainer).keys()))
    assert type(trainer) is Failing


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_losses_are_those_of_training_with_rising_learning_rates(accumulation: int) -> None:
    """Two groups, the second at a tenth; 8 images in order, without dropout."""
    data, in_order = tiny_data(8), NO_WORKERS | {"sampler": torch.utils.data.SequentialSampler(tiny_data(8))}

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 3))
        groups: list[dict[str, Any]] = [{"params": model[3].parameters()}]
        groups += [{"params": model[1].parameters(), "lr": 0.05}]
        return model, torch.optim.SGD(groups, lr=0.5)

    model, optimizer = make()
    options = OPTIONS | {"train_dataloader_kwargs": in_order, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(LoopTrainer, model, optimizer=optimizer)
    sweep = find_lr(trainer, data, min_lr=1e-3, max_lr=1.0, **options)
    np.testing.assert_allclose(sweep.learning_rates, [10 ** (-3 + 3 * update / 11) for update in range(12)])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]  # the user's own

    by_hand, optimizer = make()
    images, labels = data.tensors
    for update, rate in enumerate(sweep.learning_rates):
        batches = [slice(4 * (update % 2), 4 * (update % 2) + 4)] if accumulation == 1 else [slice(0, 4), slice(4, 8)]
        losses = [nn.functional.cross_entropy(by_hand(images[batch]), labels[batch]) for batch in batches]
        loss = torch.stack(losses).mean()
        assert sweep.losses[update] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate / 10
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_layer_decay_holds_in_the_range_test() -> None:
    steps = []

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            steps.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    model = tiny_model()
    groups = [{"params": model[0].parameters(), "lr_scale": 0.25}, {"params": model[5].parameters()}]
    trainer = make_trainer(TimmTrainer, model, optimizer=Noting(groups, lr=0.1))
    trainer.scheduler_args = {"sched": "cosine", "warmup_epochs": 99}  # not for a range test
    sweep = find_lr(trainer, tiny_data(), **OPTIONS)
    assert [rates[1] for rates in steps] == pytest.approx(sweep.learning_rates.tolist())
    assert [rates[0] for rates in steps] == pytest.approx((sweep.learning_rates / 4).tolist())


def test_a_range_test_ends_where_the_loss_diverges(capsys: pytest.CaptureFixture[str]) -> None:
    class Rising(LoopTrainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            output = super().calculate_train_batch_loss(batch)
            return output | {"loss": output["loss"] * 0 + (100.0 if self.num_updates >= 5 else 1.0)}

    sweep = find_lr(make_trainer(Rising), tiny_data(), **OPTIONS | {"stop_at": 2.0})
    assert sweep.losses.tolist() == [1.0] * 5 + [100.0]
    assert len(sweep.learning_rates) == 6
    printed = " ".join(capsys.readouterr().out.split())
    assert f"ends at a learning rate of {sweep.learning_rates[5]:.1e}, where the loss rises, as it should" in printed
    assert "start with a smaller learning rate" in printed


def test_what_is_not_finite_is_left_out() -> None:
    class Broken(LoopTrainer):
        breaks_at = 5

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            output = super().calculate_train_batch_loss(batch)
            return output | {"loss": output["loss"] * (float("nan") if self.num_updates >= self.breaks_at else 1)}

    trainer = make_trainer(Broken)
    assert len(find_lr(trainer, tiny_data(), **OPTIONS).losses) == 5
    Broken.breaks_at = 2
    with refused(RuntimeError, "finite losses, but got 2", "Lower min_lr"):
        find_lr(trainer, tiny_data(), **OPTIONS)


def test_the_suggestions_on_a_loss_that_is_known() -> None:
    """Up a little in a decade, down by 2 in two decades, up again: the moving average lags behind by some tenths."""
    exponents = np.linspace(-5, 0, 101)
    losses = np.interp(exponents, [-5, -4, -2, -1, 0], [3.0, 3.1, 1.0, 1.0, 9.0])
    sweep = _suggest(10**exponents, losses)
    assert -4 < np.log10(sweep.steepest) < -1.9
    assert np.log10(sweep.minimum_tenth) == pytest.approx(-2, abs=0.2)
    by_hand = np.array([losses[: n + 1] @ 0.9 ** np.arange(n, -1, -1.0) for n in range(101)])
    by_hand /= np.array([(0.9 ** np.arange(n + 1)).sum() for n in range(101)])
    np.testing.assert_allclose(sweep.smoothed, by_hand)
    slopes = np.gradient(by_hand, exponents)
    assert sweep.steepest == pytest.approx(10 ** exponents[slopes.argmin()])
    assert sweep.minimum_tenth == pytest.approx(10 ** (exponents[by_hand.argmin()] - 1))
    first, last = _longest_fall(by_hand)
    assert (exponents[first], exponents[last]) == (pytest.approx(-4, abs=0.2), exponents[by_hand.argmin()])
    assert sweep.valley == pytest.approx(10 ** ((exponents[first] + exponents[last]) / 2))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3, 1, 2, 0], (0, 3)), ([1, 2, 3], None), ([5, 4, 9, 8, 7, 6], (2, 5)), ([2, 3, 1], (0, 2))],
)
def test_the_longest_fall_may_have_gaps(values: list[float], expected: Any) -> None:
    assert _longest_fall(np.array(values, float)) == expected


def test_a_loss_that_only_rises_has_no_steepest_fall() -> None:
    sweep = _suggest(np.geomspace(1e-5, 1, 20), np.arange(20.0))
    assert (sweep.steepest, sweep.valley) == (None, None)
    assert sweep.minimum_tenth == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_lr": 0.0}, ("min_lr to be positive and below max_lr", "0.0 and 1.0")),
        ({"min_lr": 2.0}, ("below max_lr", "2.0 and 1.0")),
        ({"max_lr": float("inf")}, ("below max_lr", "inf")),
        ({"num_updates": 9}, ("num_updates to be at least 10", "got 9")),
        ({"stop_at": 1}, ("stop_at to be above 1", "got 1")),
        ({"num_epochs": 3}, ("train_options without num_epochs", "Drop it")),
        ({"eval_dataset": tiny_data(3)}, ("train_options without eval_dataset",)),
    ],
)
def test_numbers_that_cannot_be_right_are_refused(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        find_lr(make_trainer(), tiny_data(), **OPTIONS | options)


def test_an_optimizer_without_a_learning_rate_and_a_current_run_are_refused() -> None:
    model = tiny_model()
    with refused(ValueError, "first group has a positive learning rate", "got [None]"):
        find_lr(make_trainer(model=model, optimizer=create_optimizer(model, "adafactor")), tiny_data(), **OPTIONS)

    class Within(LoopTrainer):
        def after_update(self) -> None:
            super().after_update()
            find_lr(self, tiny_data(), **OPTIONS)

    with refused(RuntimeError, "before or between runs", "Call it before train()"):
        fit(make_trainer(Within))


def test_the_range_test_is_a_record_that_can_be_saved() -> None:
    sweep = find_lr(make_trainer(), tiny_data(), **OPTIONS)
    assert isinstance(sweep, LRRangeTest)
    assert len(sweep.learning_rates) == len(sweep.losses) == len(sweep.smoothed) == 12

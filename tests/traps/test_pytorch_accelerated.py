"""Traps 14 to 26: what pytorch-accelerated's loop and callbacks do wrongly, and ours do not."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_accelerated.callbacks import MoveModulesToDeviceCallback as UpstreamMoveModulesToDeviceCallback
from pytorch_accelerated.callbacks import TerminateOnNaNCallback, TrainerCallback
from pytorch_accelerated.trainer import Trainer
from timm.utils import ModelEmaV2, ModelEmaV3
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset, default_collate

from timm_accel import TimmTrainer
from timm_accel.callbacks import Callback, MoveModulesToDeviceCallback, SaveBestCallback, StopOnNonFiniteLossCallback
from timm_accel.mixins import TimmSchedulerMixin
from timm_accel.training import LoopTrainer

IN_ORDER = NO_WORKERS | {"shuffle": False}
NAN = float("nan")
ACCUMULATION_VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def upstream_trainer(model: nn.Module, callbacks: Iterable[Any] = (), **options: Any) -> Trainer:
    options.setdefault("optimizer", torch.optim.SGD(model.parameters(), lr=0.1))
    options.setdefault("loss_func", nn.CrossEntropyLoss())
    return Trainer(model, callbacks=callbacks, **options)


def linear_model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


# 14: misspelled attributes


def hook_with_a_typo(self: Any, trainer: Any, **kwargs: Any) -> None:
    self.calls += 1
    self.limt  # noqa: B018
    self.calls += 100


@pytest.mark.parametrize("event", ["on_train_step_end", "on_update_end", "on_eval_epoch_end", "on_training_run_end"])
def test_a_misspelled_attribute_in_our_callback_is_an_error(event: str) -> None:
    callback = type("Typo", (Callback,), {"calls": 0, event: hook_with_a_typo})()
    with pytest.raises(AttributeError, match="'Typo' object has no attribute 'limt'"):
        fit(make_trainer(callbacks=[callback]), eval_dataset=tiny_data(3))
    assert callback.calls == 1


def test_upstreams_base_swallows_it() -> None:
    callback = type("Typo", (TrainerCallback,), {"calls": 0, "on_train_step_end": hook_with_a_typo})()
    fit(make_trainer(callbacks=[callback]))
    assert callback.calls == 8


def test_an_event_that_our_callback_does_not_know_is_passed_over() -> None:
    trainer = make_trainer(callbacks=[Callback()])
    trainer.callback_handler.call_event("on_something_of_the_users", trainer)


# 16: the user's seed

SHOW_STATES = """
import random, sys
import numpy, torch
def states():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
def gpu_seed():  # what waits until the first use of a GPU; torch has no public name for it
    calls = filter(None, torch.cuda._lazy_seed_tracker.get_calls())
    return [cell.cell_contents for call in calls for cell in call[0].__closure__]
random.seed(7), numpy.random.seed(7), torch.manual_seed(7)
before = states()
import timm_accel
assert "pytorch_accelerated" not in sys.modules
print(states() == before)
import timm_accel.training
print(states() == before)
import timm_accel.callbacks, timm_accel.data, timm_accel.models, timm_accel.recipes, timm_accel.trainers
print(states() == before)
print(gpu_seed())
import importlib, pytorch_accelerated
importlib.reload(pytorch_accelerated)
print([now == then for now, then in zip(states(), before)], gpu_seed())
"""


@pytest.fixture(scope="module")
def shown() -> list[str]:
    """What a fresh process prints before and after it imports the package."""
    command = [sys.executable, "-c", SHOW_STATES]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()


def test_importing_the_package_draws_and_seeds_nothing(shown: list[str]) -> None:
    assert shown[:3] == ["True", "True", "True"]


def test_importing_the_package_leaves_the_seed_of_a_gpu_alone(shown: list[str]) -> None:
    assert shown[3] == "[7]"


def test_importing_upstream_seeds_every_generator(shown: list[str]) -> None:
    assert shown[4] == "[False, False, False] [42]"


@pytest.mark.parametrize(
    ("model", "shuffle"),
    [(tiny_model, False), (linear_model, True)],  # what the seed decides: dropout alone, the order alone
)
def test_a_run_depends_on_the_trainers_seed_alone(model: Callable[[], nn.Module], shuffle: bool) -> None:
    def trained(seed: int, seed_outside: int) -> Any:
        trainer = make_trainer(model=model(), seed=seed)
        random.seed(seed_outside), np.random.seed(seed_outside), torch.manual_seed(seed_outside)
        return fit(trainer, train_dataloader_kwargs=NO_WORKERS | {"shuffle": shuffle})

    first, again, other = trained(7, 0), trained(7, 1), trained(8, 0)
    assert same_weights(first.model, again.model)
    assert first.run_history._metrics == again.run_history._metrics
    assert not same_weights(first.model, other.model)


def test_upstreams_runs_forget_the_users_seed() -> None:
    def trained(seed: int) -> nn.Module:
        trainer = upstream_trainer(tiny_model())
        torch.manual_seed(seed)
        return fit(trainer).model

    assert same_weights(trained(7), trained(8))


# 17: accumulation, clipping and the logged loss


def train_by_hand(
    model: nn.Module, data: TensorDataset, batch_size: int, accumulation: int, clip: float | None, epochs: int
) -> list[float]:
    """Train with SGD in the data's order, and return each epoch's mean loss over images."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    epoch_means = []
    for _ in range(epochs):
        batches, total = list(DataLoader(data, batch_size)), 0.0
        for start in range(0, len(batches), accumulation):
            group = batches[start : start + accumulation]
            for images, labels in group:
                loss = nn.functional.cross_entropy(model(images), labels)
                total += loss.item() * len(images)
                (loss * len(images) / sum(len(labels) for _, labels in group)).backward()
            if clip is not None:
                nn.utils.clip_grad_value_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        epoch_means.append(total / len(data))
    return epoch_means


@pytest.mark.parametrize("count", [20, 18])  # 18: the last micro-batch has 2 images
@pytest.mark.parametrize("clip", [None, 0.002])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 8])  # of 5 micro-batches: groups of 1, 2 + 2 + 1, 3 + 2, and 5
def test_an_update_is_the_mean_of_its_group_clipped_once(accumulation: int, clip: float | None, count: int) -> None:
    model, data = linear_model(), tiny_data(count)
    by_hand = deepcopy(model)
    losses = train_by_hand(by_hand, data, 4, accumulation, clip, epochs=2)

    trainer = make_trainer(model=model)
    fit(
        trainer,
        data,
        train_dataloader_kwargs=IN_ORDER,
        gradient_accumulation_steps=accumulation,
        gradient_clip_value=clip,
    )
    torch.testing.assert_close(list(trainer.model.parameters()), list(by_hand.parameters()), rtol=1e-5, atol=1e-7)
    assert trainer.run_history.get_metric_values("train_loss_epoch") == pytest.approx(losses, rel=1e-6)


def test_the_clip_of_that_reference_matters_and_clipping_every_micro_batch_is_another() -> None:
    once, never = linear_model(), linear_model()
    train_by_hand(once, tiny_data(20), 4, 3, 0.002, epochs=2)
    train_by_hand(never, tiny_data(20), 4, 3, None, epochs=2)
    upstream = upstream_trainer(linear_model())
    fit(
        upstream,
        tiny_data(20),
        train_dataloader_kwargs=IN_ORDER,
        gradient_accumulation_steps=3,
        gradient_clip_value=0.002,
    )
    once, never, upstream = (module[1].weight for module in (once, never, upstream.model))
    assert (once - never).abs().max() > 1e-3
    assert (once - upstream).abs().max() > 1e-4


def test_upstream_logs_a_fraction_of_the_loss_and_shrinks_the_last_group() -> None:
    model = linear_model()
    by_hand = deepcopy(model)
    (loss,) = train_by_hand(by_hand, tiny_data(20), 4, 4, None, epochs=1)
    trainer = upstream_trainer(model)
    fit(trainer, tiny_data(20), num_epochs=1, train_dataloader_kwargs=IN_ORDER, gradient_accumulation_steps=4)
    assert trainer.run_history.get_latest_metric("train_loss_epoch") == pytest.approx(loss / 4, rel=1e-5)
    assert not torch.allclose(trainer.model[1].weight, by_hand[1].weight, atol=1e-4)


def test_accelerates_accumulation_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ACCUMULATION_VARIABLE, "2")
    with pytest.raises(ValueError, match=f"Expected {ACCUMULATION_VARIABLE} to be unset, .* but got '2'. Pass"):
        make_trainer()
    monkeypatch.setenv(ACCUMULATION_VARIABLE, "1")
    trainer = make_trainer()
    monkeypatch.setenv(ACCUMULATION_VARIABLE, "4")
    with pytest.raises(ValueError, match=ACCUMULATION_VARIABLE):
        fit(trainer)


# 18: losses that are not finite


class Breaks(nn.Module):
    """Cross-entropy times `value` in the named calls, counted from 1, of training or of evaluation."""

    def __init__(self, value: float, training: Iterable[int] = (), evaluation: Iterable[int] = ()) -> None:
        super().__init__()
        self.value, self.broken = value, {True: training, False: evaluation}
        self.calls = {True: 0, False: 0}

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        training = logits.requires_grad
        self.calls[training] += 1
        loss = nn.functional.cross_entropy(logits, labels)
        return loss * self.value if self.calls[training] in self.broken[training] else loss


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize(
    ("every", "updates"),
    [(1, 6), (4, 8), (5, 8), (100, 8)],  # the 6th of 8 updates in an epoch breaks: sync points and the epoch's end
)
def test_a_broken_training_loss_ends_the_run_at_the_next_sync_point(value: float, every: int, updates: int) -> None:
    trainer = make_trainer(
        loss_func=Breaks(value, training=[6]),
        callbacks=[StopOnNonFiniteLossCallback],
        sync_every_n_updates=every,
    )
    with pytest.raises(RuntimeError, match=f"training loss to be finite, but it is not in epoch 1, after {updates} "):
        fit(trainer, tiny_data(32), tiny_data(3), num_epochs=3)
    assert trainer.num_updates == updates
    assert trainer.loss_func.calls[False] == 0  # there was nothing to evaluate any more


def test_a_broken_evaluation_loss_ends_the_run_after_the_evaluation() -> None:
    loss_func = Breaks(NAN, evaluation=[4, 5])  # the last batch of the 2nd epoch, and the next call
    trainer = make_trainer(loss_func=loss_func, callbacks=[StopOnNonFiniteLossCallback])
    with pytest.raises(RuntimeError, match="evaluation loss to be finite, but it is not in epoch 2"):
        fit(trainer, eval_dataset=tiny_data(8), num_epochs=5)
    assert trainer.num_updates == 8
    with pytest.raises(RuntimeError, match="evaluation loss to be finite, but it is not, after"):
        trainer.evaluate(tiny_data(3), dataloader_kwargs=NO_WORKERS)


def test_upstreams_callback_is_exchanged_for_ours_and_no_process_exits() -> None:
    trainer = make_trainer(loss_func=Breaks(NAN, training=[1]), callbacks=[TerminateOnNaNCallback()])
    with pytest.raises(RuntimeError, match="training loss to be finite"):
        fit(trainer)
    upstream = upstream_trainer(tiny_model(), [TerminateOnNaNCallback()], loss_func=Breaks(NAN, training=[1]))
    with pytest.raises(SystemExit):
        fit(upstream)


@pytest.mark.parametrize("value", [NAN, float("-inf")])  # less is better: minus infinity would be the best of all
def test_a_value_that_is_not_finite_is_never_kept_as_best(value: float, tmp_path: Path) -> None:
    saver = SaveBestCallback("eval_loss_epoch", greater_is_better=False, save_dir=tmp_path)
    trainer = make_trainer(loss_func=Breaks(value, evaluation=[1, 3]), callbacks=[saver])
    fit(trainer, eval_dataset=tiny_data(3), num_epochs=3)
    values = trainer.run_history.get_metric_values("eval_loss_epoch")
    assert [bool(np.isfinite(value)) for value in values] == [False, True, False]
    assert saver.best["model"] == {"metric": "eval_loss_epoch", "value": values[1], "epoch": 2}


def test_the_epoch_that_ends_the_run_is_not_kept_as_best(tmp_path: Path) -> None:
    saver = SaveBestCallback("train_loss_epoch", greater_is_better=False, save_dir=tmp_path)
    loss_func = Breaks(NAN, evaluation=[1])  # the watched loss stays finite
    trainer = make_trainer(loss_func=loss_func, callbacks=[saver, StopOnNonFiniteLossCallback])
    with pytest.raises(RuntimeError, match="evaluation loss to be finite"):
        fit(trainer, eval_dataset=tiny_data(3))
    assert saver.best == {}
    assert list(tmp_path.iterdir()) == []


# 23: collate functions and modules


def marked_collate(seen: list[int], samples: list[Any]) -> Any:
    seen.append(len(samples))
    return default_collate(samples)


def test_training_and_evaluation_take_a_collate_function_each() -> None:
    training, evaluation, both = [], [], []
    trainer = make_trainer()
    fit(
        trainer,
        eval_dataset=tiny_data(6),
        num_epochs=1,
        train_dataloader_kwargs=NO_WORKERS | {"collate_fn": partial(marked_collate, training)},
        eval_dataloader_kwargs=NO_WORKERS | {"collate_fn": partial(marked_collate, evaluation)},
    )
    assert (training, evaluation) == ([4, 4, 4, 4], [4, 2])
    fit(
        trainer,
        eval_dataset=tiny_data(6),
        num_epochs=1,
        collate_fn=partial(marked_collate, both),
        eval_dataloader_kwargs=NO_WORKERS | {"collate_fn": partial(marked_collate, evaluation)},
    )
    assert (both, evaluation) == ([4, 4, 4, 4], [4, 2, 4, 2])
    with pytest.raises(TypeError, match="multiple values for keyword argument 'collate_fn'"):
        fit(upstream_trainer(tiny_model()), train_dataloader_kwargs=NO_WORKERS | {"collate_fn": default_collate})


class CountsMoves(nn.Module):
    """A loss that counts how often it is moved to a device."""

    moves = 0

    def to(self, *args: Any, **kwargs: Any) -> "CountsMoves":
        self.moves += 1
        return super().to(*args, **kwargs)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels)


class TrainerWithModules(LoopTrainer):
    """Has EMA models on another device, modules to move, and a property that fails until the run is over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.elsewhere = [self._ema_model(ModelEmaV2), self._ema_model(ModelEmaV3)]
        self.ema_v2, self.ema_v3 = self.elsewhere
        self.ema_here = ModelEmaV3(linear_model())
        self.ema_here.to = self.loss_func.to

    def _ema_model(self, kind: type[Any]) -> Any:
        ema_model = kind(linear_model())
        ema_model.device = torch.device("meta")  # neither timm's generator nor a copy back can do with it
        ema_model.module.to("meta")
        return ema_model

    @property
    def summary(self) -> str:
        raise RuntimeError("There is no summary before the run's end.")


@pytest.mark.parametrize("given", [MoveModulesToDeviceCallback, UpstreamMoveModulesToDeviceCallback])
def test_modules_move_but_ema_models_with_a_device_stay_and_properties_are_not_read(given: type) -> None:
    trainer = make_trainer(TrainerWithModules, loss_func=CountsMoves(), callbacks=[given])
    fit(trainer)
    assert trainer.loss_func.moves == 2  # the loss, and the EMA model without a device
    trainer.evaluate(tiny_data(3), dataloader_kwargs=NO_WORKERS)
    assert trainer.loss_func.moves == 4
    for ema_model in trainer.elsewhere:
        assert {parameter.device.type for parameter in ema_model.parameters()} == {"meta"}


def test_upstreams_callback_moves_every_ema_model_and_reads_every_property() -> None:
    trainer = make_trainer(TrainerWithModules, loss_func=CountsMoves())
    with pytest.raises(RuntimeError, match="no summary"):
        UpstreamMoveModulesToDeviceCallback().on_training_run_start(trainer)
    plain = upstream_trainer(tiny_model())
    plain.ema = trainer.ema_v3
    with pytest.raises(NotImplementedError, match="meta"):
        UpstreamMoveModulesToDeviceCallback().on_training_run_start(plain)


# 24: schedulers without create_scheduler_fn


class HalvingTrainer(TimmSchedulerMixin):
    def create_scheduler(self) -> Any:
        return StepLR(self.optimizer, step_size=1, gamma=0.5)


def test_scheduler_args_alone_make_a_schedule() -> None:
    trainer = make_trainer(TimmSchedulerMixin, scheduler_args={"sched": "step", "decay_epochs": 1, "decay_rate": 0.5})
    fit(trainer)
    assert trainer.learning_rate == 0.1 * 0.5**2


def test_an_overridden_create_scheduler_alone_makes_a_schedule() -> None:
    trainer = fit(make_trainer(HalvingTrainer))
    assert trainer.learning_rate == 0.1 * 0.5**8
    fit(trainer, num_epochs=1)
    assert trainer.learning_rate == 0.1 * 0.5**12


def test_upstream_ignores_an_overridden_create_scheduler() -> None:
    class Halving(Trainer):
        create_scheduler = HalvingTrainer.create_scheduler

    model = tiny_model()
    trainer = Halving(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), callbacks=())
    assert fit(trainer).optimizer.param_groups[0]["lr"] == 0.1


def test_without_any_of_them_there_is_no_schedule() -> None:
    trainer = fit(make_trainer(TimmSchedulerMixin))
    assert trainer.scheduler is None
    assert trainer.learning_rate == 0.1


# 26: the seam after an update, and the number of workers


class LooksAround(TimmTrainer):
    """Writes down the order of an update's hooks, and what `after_update` finds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.order: list[str] = []
        self.found: list[tuple[bool, bool]] = []
        super().__init__(*args, **kwargs)

    def clip_gradients(self) -> None:
        super().clip_gradients()
        self.order.append("clip")

    def optimizer_step(self) -> None:
        self.before = [parameter.detach().clone() for parameter in self.model.parameters()]
        super().optimizer_step()
        self.order.append("step")

    def after_update(self) -> None:
        super().after_update()
        self.order.append(f"after update {self.num_updates}")
        parameters = list(self.model.parameters())
        moved = not all(map(torch.equal, self.before, parameters))
        self.found.append((moved, all(parameter.grad is not None for parameter in parameters)))

    def scheduler_step(self) -> None:
        super().scheduler_step()
        self.order.append("schedule")

    def optimizer_zero_grad(self) -> None:
        super().optimizer_zero_grad()
        self.order.append("zero_grad")


class LooksAtUpdateEnd(Callback):
    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
        trainer.order.append("on_update_end")


def test_after_update_runs_between_step_and_zero_grad_once_an_update() -> None:
    trainer = make_trainer(LooksAround, callbacks=[LooksAtUpdateEnd], scheduler_args={"sched": "cosine"})
    fit(trainer, num_epochs=1, gradient_accumulation_steps=3)  # 4 micro-batches, 2 updates
    one_update = ["clip", "step", "after update {}", "schedule", "zero_grad", "on_update_end"]
    assert trainer.order == [step.format(number) for number in (1, 2) for step in one_update]
    assert trainer.found == [(True, True), (True, True)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize("processes", [None, 1, 2, 1000])
def test_workers_are_the_cores_that_this_process_may_use_shared_among_the_local_processes(
    processes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, allowed = make_trainer(), os.sched_getaffinity(0)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    try:
        for cores in {len(allowed), 1}:
            os.sched_setaffinity(0, sorted(allowed)[:cores])
            expected = max(1, cores // (processes or 1))
            assert trainer.get_default_train_dl_kwargs(4)["num_workers"] == expected
            assert trainer.get_default_eval_dl_kwargs(4)["num_workers"] == expected
    finally:
        os.sched_setaffinity(0, allowed)

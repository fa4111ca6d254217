"""Every timm scheduler, and torch's: the learning rate of each update is that of timm's loop."""

import math
from typing import Any

import pytest
import torch
from timm.scheduler import create_scheduler_v2
from tiny_runs import fit, make_trainer, tiny_data
from torch import nn

from timm_accel import LoopTrainer, TimmMixupTrainer
from timm_accel.mixins import TimmSchedulerMixin
from timm_accel.schedules import SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")

EPOCHS, LR = 6, 0.1
METRICS = [0.5, 0.4, 0.4, 0.4, 0.4, 0.3]  # what a plateau schedule sees

SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {"sched": "cosine", "min_lr": 1e-3},
    "cosine, warm-up": {"sched": "cosine", "warmup_epochs": 2, "warmup_lr": 1e-4},
    "cosine, warm-up prefix": {"sched": "cosine", "warmup_epochs": 2, "warmup_prefix": True, "num_epochs": 4},
    "cosine, cycles": {"sched": "cosine", "num_epochs": 2, "cycle_limit": 3, "cycle_decay": 0.5},
    "cosine, longer cycles": {"sched": "cosine", "num_epochs": 2, "cycle_limit": 2, "cycle_mul": 2.0},
    "cosine, k-decay": {"sched": "cosine", "k_decay": 1.5},
    "cosine, noise": {"sched": "cosine", "noise": [0.3, 0.8], "noise_pct": 0.5},
    "cosine, cooldown": {"sched": "cosine", "num_epochs": 4, "cooldown_epochs": 2, "min_lr": 1e-3},
    "tanh": {"sched": "tanh", "min_lr": 1e-3},
    "step": {"sched": "step", "decay_epochs": 2, "decay_rate": 0.5},
    "step, warm-up": {"sched": "step", "decay_epochs": 2, "decay_rate": 0.5, "warmup_epochs": 1, "warmup_lr": 1e-3},
    "multistep": {"sched": "multistep", "decay_milestones": [1, 4], "decay_rate": 0.1},
    "poly": {"sched": "poly", "decay_rate": 0.5, "min_lr": 1e-3},
    "poly, k-decay": {"sched": "poly", "decay_rate": 1.0, "k_decay": 0.5},
    "wsd": {"sched": "wsd", "warmup_epochs": 1, "decay_epochs": 2, "warmup_lr": 1e-3},
    "rsqrt": {"sched": "rsqrt", "warmup_epochs": 1, "decay_epochs": 2, "warmup_lr": 1e-3},
    "constant": {"sched": "constant", "warmup_epochs": 2, "warmup_lr": 1e-3},
    "plateau": {"sched": "plateau", "patience_epochs": 1, "decay_rate": 0.5, "plateau_mode": "min"},
    "plateau, warm-up": {"sched": "plateau", "patience_epochs": 1, "warmup_epochs": 2, "plateau_mode": "min"},
    "none": {"sched": "none"},
}


def timms_learning_rates(settings: dict[str, Any], updates_per_epoch: int, on_updates: bool) -> list[float]:
    """The learning rate that each update uses, and the last one set, by the order of calls in timm's ``train.py``."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    options = {"num_epochs": EPOCHS, "step_on_epochs": not on_updates} | settings
    scheduler, _ = create_scheduler_v2(optimizer, updates_per_epoch=updates_per_epoch, **options)
    rates, num_updates = [], 0
    for epoch in range(EPOCHS):
        for _ in range(updates_per_epoch):
            rates.append(optimizer.param_groups[0]["lr"])
            num_updates += 1
            if scheduler is not None:
                scheduler.step_update(num_updates=num_updates, metric=None)
        if scheduler is not None:
            scheduler.step(epoch + 1, METRICS[epoch])
    return [*rates, optimizer.param_groups[0]["lr"]]


class Noting(TimmSchedulerMixin):
    """Notes the learning rate of each update, and records a metric that is known beforehand."""

    def training_run_start(self) -> None:
        self.rates: list[float] = []
        super().training_run_start()

    def optimizer_step(self) -> None:
        self.rates.append(self.learning_rate)
        super().optimizer_step()

    def eval_epoch_end(self) -> None:
        super().eval_epoch_end()
        if self.epoch is not None:
            self.run_history.update_metric("score", METRICS[self.epoch])


def our_learning_rates(accumulation: int = 1, **options: Any) -> list[float]:
    model = tiny_model_without_noise()
    trainer = make_trainer(
        Noting, model, optimizer=torch.optim.SGD(model.parameters(), lr=LR), scheduler_metric="score", **options
    )
    fit(trainer, eval_dataset=tiny_data(3), num_epochs=EPOCHS, gradient_accumulation_steps=accumulation)
    return [*trainer.rates, trainer.learning_rate]


def tiny_model_without_noise() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("on_updates", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_update_has_the_learning_rate_of_timms_loop(name: str, on_updates: bool, accumulation: int) -> None:
    settings = SETTINGS[name]
    if on_updates and settings["sched"] == "plateau":
        return  # it steps by epochs alone
    ours = our_learning_rates(accumulation, scheduler_args=settings | {"step_on_epochs": not on_updates})
    assert ours == timms_learning_rates(settings, 4 // accumulation, on_updates)
    assert len(set(ours)) > 1 or settings["sched"] == "none"


def test_every_scheduler_of_timm_is_among_them() -> None:
    assert {settings["sched"] for settings in SETTINGS.values()} == set(SCHEDULERS)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("cosine, warm-up", 1e-4, 0.0), ("cosine", LR, 1e-3), ("tanh", None, 1e-3), ("poly", LR, 1e-3)],
)
def test_the_first_and_last_learning_rates_are_those_configured(name: str, first: float | None, last: float) -> None:
    ours = our_learning_rates(scheduler_args=SETTINGS[name] | {"step_on_epochs": False})
    assert first is None or ours[0] == pytest.approx(first)
    assert ours[-1] == pytest.approx(last, abs=1e-9)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (2, 1), (3, 1), (4, 2), (40, 3)])
def test_the_warmup_of_the_class_is_at_most_half_of_the_run(
    epochs: int, warmup: int, capsys: pytest.CaptureFixture[str]
) -> None:
    class Article(Noting):
        default_scheduler_args = TimmMixupTrainer.default_scheduler_args

    model = tiny_model_without_noise()
    trainer = make_trainer(Article, model, optimizer=torch.optim.SGD(model.parameters(), lr=LR))
    fit(trainer, num_epochs=epochs, create_scheduler_fn=trainer.create_scheduler, max_num_train_steps=4 * epochs)
    rises = [1e-4 + (LR - 1e-4) * epoch / warmup for epoch in range(warmup)]
    cosine = [1e-6 + (LR - 1e-6) * (1 + math.cos(math.pi * e / epochs)) / 2 for e in range(warmup, epochs)]
    assert trainer.rates[::4] == pytest.approx(rises + cosine)
    said = f"The warm-up is {warmup} instead of 3 epochs" in capsys.readouterr().out
    assert said is (warmup < 3)


def test_a_torch_scheduler_steps_with_each_update() -> None:
    ours = our_learning_rates(accumulation=2, callbacks=())
    assert set(ours) == {LR}

    class Own(Noting):
        def create_scheduler(self) -> Any:
            return torch.optim.lr_scheduler.ExponentialLR(self.optimizer, gamma=0.5)

    model = tiny_model_without_noise()
    trainer = make_trainer(Own, model, optimizer=torch.optim.SGD(model.parameters(), lr=LR))
    fit(trainer, num_epochs=1)
    assert trainer.rates == [LR, LR / 2, LR / 4, LR / 8]


def test_reduce_on_plateau_steps_with_each_epoch_and_the_metric() -> None:
    def reduce(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5)

    model = tiny_model_without_noise()
    trainer = make_trainer(
        Noting, model, optimizer=torch.optim.SGD(model.parameters(), lr=LR), scheduler_metric="score"
    )
    fit(trainer, eval_dataset=tiny_data(3), num_epochs=EPOCHS, create_scheduler_fn=reduce)
    by_hand = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, expected = reduce(by_hand), []
    for metric in METRICS:
        expected += [by_hand.param_groups[0]["lr"]] * 4
        scheduler.step(metric)
    assert trainer.rates == expected
    assert len(set(expected)) > 1


def test_a_plateau_without_evaluation_data_watches_the_training_loss() -> None:
    class Rising(TimmSchedulerMixin):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            output = super().calculate_train_batch_loss(batch)
            return output | {"loss": output["loss"] * 0 + (self.epoch or 0)}

    settings = {"sched": "plateau", "patience_epochs": 0, "decay_rate": 0.5}
    trainer = fit(make_trainer(Rising, scheduler_args=settings), num_epochs=3)
    assert trainer.learning_rate == pytest.approx(0.1 * 0.5 * 0.5)


def test_evaluation_changes_no_learning_rate() -> None:
    from pytorch_accelerated.callbacks import StepBasedEvaluationCallback

    settings = {"scheduler_args": SETTINGS["cosine, warm-up"] | {"step_on_epochs": False}}
    plain = our_learning_rates(**settings)
    assert our_learning_rates(**settings, callbacks=[StepBasedEvaluationCallback(2)]) == plain

    trainer = make_trainer(Noting, scheduler_metric="score", **settings)
    fit(trainer, eval_dataset=tiny_data(3), num_epochs=EPOCHS)
    before = trainer.learning_rate
    trainer.evaluate(tiny_data(3), dataloader_kwargs={"num_workers": 0})
    assert trainer.learning_rate == before


def test_without_any_schedule_there_is_none() -> None:
    trainer = fit(make_trainer(TimmSchedulerMixin))
    assert trainer.scheduler is None
    assert issubclass(TimmSchedulerMixin, LoopTrainer)

"""A schedule fits its run, and its simulation is what a real run through the trainer uses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from timm.scheduler import CosineLRScheduler
from tiny_runs import fit, make_trainer, tiny_data
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, ReduceLROnPlateau

from timm_accel import Recipe, TimmTrainer
from timm_accel.recipes import named_recipe
from timm_accel.schedules import SCHEDULERS, check_fits, create_schedule, simulate_schedule
from timm_accel.schedules.fitting import bent_warmup

EPOCHS, UPDATES, LR = 6, 4, 0.1
METRICS = [0.5, 0.4, 0.4, 0.4, 0.4, 0.3]
RUN = {"num_epochs": EPOCHS, "updates_per_epoch": UPDATES}
pytestmark = pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"sched": "cosine", "min_lr": 1e-3},
    "warm-up": {"sched": "cosine", "warmup_epochs": 2, "warmup_lr": 1e-4},
    "warm-up prefix": {"sched": "cosine", "warmup_epochs": 2, "warmup_prefix": True},
    "noise": {"sched": "cosine", "noise": [0.3, 0.8], "noise_pct": 0.5},
    "cycles": {"sched": "cosine", "cycle_limit": 3, "cycle_decay": 0.5},
    "longer cycles": {"sched": "cosine", "cycle_limit": 2, "cycle_mul": 2.0},
    "k-decay": {"sched": "cosine", "k_decay": 1.5},
    "cooldown": {"sched": "cosine", "cooldown_epochs": 2, "min_lr": 1e-3},
    "all of it": {"sched": "poly", "warmup_epochs": 1, "warmup_prefix": True, "cooldown_epochs": 1, "cycle_limit": 2},
    "share of the run": {"sched": "tanh", "warmup_fraction": 0.3, "cooldown_fraction": 0.2},
    "step": {"sched": "step", "decay_epochs": 2, "decay_rate": 0.5},
    "multistep": {"sched": "multistep", "decay_milestones": [1, 4]},
    "wsd": {"sched": "wsd", "warmup_epochs": 1, "decay_epochs": 2, "cooldown_epochs": 1},
    "wsd, prefix": {"sched": "wsd", "warmup_epochs": 1, "warmup_prefix": True},
    "rsqrt": {"sched": "rsqrt", "warmup_epochs": 1, "decay_epochs": 2},
    "constant": {"sched": "constant", "warmup_epochs": 2},
    "plateau": {"sched": "plateau", "patience_epochs": 1, "decay_rate": 0.5, "plateau_mode": "min"},
    "none": {"sched": "none"},
}


class NotingSGD(torch.optim.SGD):
    """Notes the learning rate of each group at each update."""

    def step(self, closure: Any = None) -> Any:
        self.noted = [*getattr(self, "noted", []), [group["lr"] for group in self.param_groups]]
        return super().step(closure)


class Scored(TimmTrainer):
    """Records a metric that is known beforehand."""

    def eval_epoch_end(self) -> None:
        super().eval_epoch_end()
        self.run_history.update_metric("score", METRICS[self.epoch])


def layered_optimizer() -> NotingSGD:
    """Three groups: an own rate, and two scales."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    groups: list[dict[str, Any]] = [
        {"params": model[1].parameters(), "lr_scale": 0.25},
        {"params": model[2].parameters(), "lr": LR / 2, "lr_scale": 0.5},
        {"params": model[3].parameters()},
    ]
    optimizer = NotingSGD(groups, lr=LR, momentum=0.9)
    optimizer.model = model
    return optimizer


def rates_of_a_run(scheduler_args: dict[str, Any] | None = None, **options: Any) -> np.ndarray:
    optimizer = layered_optimizer()
    trainer = make_trainer(
        Scored, optimizer.model, optimizer=optimizer, scheduler_args=scheduler_args, scheduler_metric="score"
    )
    fit(trainer, eval_dataset=tiny_data(3), num_epochs=EPOCHS, **options)
    return np.array(optimizer.noted)


@pytest.mark.parametrize("on_updates", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_plan_is_what_a_run_uses(name: str, on_updates: bool) -> None:
    settings = SCHEDULES[name]
    if on_updates and settings["sched"] == "plateau":
        return  # refused, below
    settings = settings | {"step_on_epochs": not on_updates}
    optimizer = layered_optimizer()
    simulated = simulate_schedule(settings, optimizer=optimizer, metrics=METRICS, **RUN)
    assert simulated.learning_rates.shape == (EPOCHS * UPDATES, 3)
    assert np.array_equal(simulated.learning_rates, rates_of_a_run(settings))
    assert simulated.updates.tolist() == list(range(24))
    assert simulated.epochs.tolist() == [update / 4 for update in range(24)]
    assert [group["lr"] for group in optimizer.param_groups] == [LR, LR / 2, LR]  # as it was


def test_every_schedule_of_timm_is_among_them() -> None:
    assert {settings["sched"] for settings in SCHEDULES.values()} == set(SCHEDULERS)


@pytest.mark.parametrize(
    "create",
    [
        lambda optimizer: OneCycleLR(optimizer, LR, total_steps=EPOCHS * UPDATES),
        lambda optimizer: ReduceLROnPlateau(optimizer, patience=1, factor=0.5),
        lambda optimizer: CosineLRScheduler(optimizer, t_initial=EPOCHS, warmup_t=2),
    ],
)
def test_a_function_that_makes_a_scheduler_can_be_planned(create: Any) -> None:
    simulated = simulate_schedule(create, optimizer=layered_optimizer(), metrics=METRICS, **RUN)
    assert np.array_equal(simulated.learning_rates, rates_of_a_run(create_scheduler_fn=create))
    assert len(np.unique(simulated.learning_rates)) > 3


@pytest.mark.parametrize("on_updates", [False, True])
def test_warm_up_prefix_cycles_and_cooldown_share_the_run(on_updates: bool) -> None:
    settings = {"warmup_epochs": 1, "warmup_prefix": True, "cooldown_epochs": 2, "cycle_limit": 3, "min_lr": 1e-3}
    settings |= {"warmup_lr": 1e-4, "cycle_decay": 0.5, "step_on_epochs": not on_updates}
    rates = simulate_schedule(settings, lr=LR, num_epochs=12, updates_per_epoch=2).learning_rates[:, 0]
    assert rates[0] == 1e-4
    for cycle in range(3):
        assert rates[2 + 6 * cycle] == pytest.approx(LR * 0.5**cycle)
    assert rates[20:].tolist() == [1e-3] * 4
    assert (rates[:20] > 1e-3).sum() == (19 if on_updates else 18)  # the warm-up begins below


def test_cycles_that_grow_fill_the_run() -> None:
    settings = {"cycle_limit": 3, "cycle_mul": 2.0, "cycle_decay": 1.0}
    rates = simulate_schedule(settings, lr=LR, num_epochs=14, updates_per_epoch=1).learning_rates[:, 0]
    assert [epoch for epoch, rate in enumerate(rates) if rate == LR] == [0, 2, 6]
    assert rates[-1] == pytest.approx(LR / 2 * (1 + math.cos(math.pi * 7 / 8)))


def test_the_given_length_of_a_cycle_is_timms() -> None:
    rates = simulate_schedule(
        {"num_epochs": 2, "cycle_limit": 9, "cycle_decay": 1.0}, lr=LR, num_epochs=7, updates_per_epoch=1
    )
    assert [epoch for epoch, rate in enumerate(rates.learning_rates[:, 0]) if rate == LR] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("length", "peak"), [({"warmup_updates": 5}, 5), ({"warmup_fraction": 0.25}, 6), ({"warmup_epochs": 1.5}, 6)]
)
def test_a_warm_up_may_be_given_in_updates_or_as_a_share_of_the_run(length: dict[str, Any], peak: int) -> None:
    settings = {"sched": "constant", "warmup_lr": 0.0, "step_on_epochs": False} | length
    rates = simulate_schedule(settings, lr=LR, num_epochs=6, updates_per_epoch=4).learning_rates[:, 0]
    assert rates.tolist() == pytest.approx([LR * min(update / peak, 1) for update in range(24)])


@pytest.mark.parametrize("updates_per_epoch", [3, 7, 49])
def test_a_warm_up_in_updates_ends_with_that_update(updates_per_epoch: int) -> None:
    for updates in range(1, updates_per_epoch + 2):
        settings = {"warmup_updates": updates, "warmup_lr": 0.0, "step_on_epochs": False}
        rates = simulate_schedule(settings, lr=LR, num_epochs=2, updates_per_epoch=updates_per_epoch).learning_rates[
            :, 0
        ]
        without = simulate_schedule({"step_on_epochs": False}, lr=LR, num_epochs=2, updates_per_epoch=updates_per_epoch)
        assert rates[updates] == without.learning_rates[updates, 0]
        assert rates[updates - 1] == pytest.approx(LR * (updates - 1) / updates)


def test_a_share_counts_whole_epochs_where_the_schedule_steps_with_them() -> None:
    rates = simulate_schedule(
        {"sched": "constant", "warmup_fraction": 0.4, "warmup_lr": 0.0}, lr=LR, **RUN
    ).learning_rates[::UPDATES, 0]
    assert rates.tolist() == pytest.approx([0, LR / 2, LR, LR, LR, LR])


@pytest.mark.parametrize(
    ("length", "on_updates", "steps"),
    [
        ({"cooldown_updates": 5}, True, 19),
        ({"cooldown_fraction": 0.27}, True, 18),  # 6.48 of 24 updates
        ({"cooldown_fraction": 0.4}, False, 4),  # 2.4 of 6 epochs
        ({"cooldown_epochs": 0}, True, 24),
    ],
)
def test_a_cooldown_holds_the_minimum_learning_rate_at_the_end(
    length: dict[str, Any], on_updates: bool, steps: int
) -> None:
    """A straight line down to it in `steps`."""
    settings = {"sched": "poly", "decay_rate": 1.0, "min_lr": 0.02, "step_on_epochs": not on_updates} | length
    rates = simulate_schedule(settings, lr=LR, **RUN).learning_rates[:: 1 if on_updates else UPDATES, 0]
    line = [0.02 + 0.08 * (1 - step / steps) for step in range(steps)]
    assert rates.tolist() == pytest.approx(line + [0.02] * (len(rates) - steps))


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_timms_cosine_is_torchs_warm_restarts(multiplier: int) -> None:
    def torchs(optimizer: Any) -> Any:
        return CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=multiplier, eta_min=1e-6)

    def timms(optimizer: Any) -> Any:
        return CosineLRScheduler(
            optimizer, t_initial=10, cycle_mul=multiplier, lr_min=1e-6, cycle_limit=20, t_in_epochs=False
        )

    theirs, ours = (
        simulate_schedule(kind, lr=0.05, num_epochs=13, updates_per_epoch=10).learning_rates for kind in (torchs, timms)
    )
    assert np.array_equal(ours, theirs)
    assert (theirs == 0.05).sum() == {1: 13, 2: 4, 3: 3}[multiplier]  # the restarts


def test_a_recipe_has_its_own_schedule_rate_and_length() -> None:
    recipe = Recipe(num_epochs=5, warmup_epochs=2, lr=0.2, warmup_lr=0.01, min_lr=0.001)
    expected = {"sched": "cosine", "min_lr": 0.001, "warmup_lr": 0.01, "warmup_epochs": 2}
    assert recipe.scheduler_args().items() >= expected.items()
    simulated = simulate_schedule(recipe, updates_per_epoch=3)
    assert np.array_equal(
        simulated.learning_rates,
        simulate_schedule(recipe.scheduler_args(), lr=0.2, num_epochs=5, updates_per_epoch=3).learning_rates,
    )
    assert simulate_schedule(recipe, updates_per_epoch=3, num_epochs=4, lr=0.1).learning_rates.shape == (12, 1)
    assert simulate_schedule(recipe, updates_per_epoch=3, optimizer=layered_optimizer()).learning_rates.shape == (15, 3)


@pytest.mark.parametrize(
    ("opt", "num_processes", "accumulation", "peak"),
    [("sgd", 1, 1, 0.05), ("sgd", 2, 4, 0.4), ("lamb", 1, 8, 0.2)],
)
def test_a_recipe_s_learning_rate_is_scaled_by_its_global_batch_size(
    opt: str, num_processes: int, accumulation: int, peak: float
) -> None:
    recipe = Recipe(lr=0.1, base_batch_size=512, batch_size=256, opt=opt, gradient_accumulation_steps=accumulation,
                    num_epochs=5, warmup_epochs=0)  # fmt: skip
    options = {"updates_per_epoch": 2, "num_processes": num_processes}
    assert simulate_schedule(recipe, **options).learning_rates.max() == pytest.approx(peak)
    assert simulate_schedule(recipe, lr=0.3, **options).learning_rates.max() == 0.3  # given as it is
    assert simulate_schedule(recipe, optimizer=layered_optimizer(), **options).learning_rates.max() == LR


def test_a_named_recipe_peaks_where_its_run_does() -> None:
    """After 5 of 100 epochs of warm-up; one process has 256 of the 2048 images that the learning rate is for."""
    simulated = simulate_schedule(named_recipe("a3").recipe(), updates_per_epoch=4)
    highest, lowest = 0.008 * (256 / 2048) ** 0.5, 1e-6
    expected = lowest + (highest - lowest) * (1 + math.cos(math.pi * 5 / 100)) / 2
    assert simulated.learning_rates.max() == simulated.learning_rates[20, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup_epochs": 7}, ("warmup to be no longer than the run, 6 epochs", "got 7 epochs")),
        ({"sched": "plateau", "warmup_epochs": 7}, ("warmup to be no longer than the run", "7")),
        ({"cooldown_epochs": 7}, ("cooldown to be no longer than the run", "got 7")),
        ({"sched": "constant", "warmup_updates": 25, "step_on_epochs": False}, ("warmup", "got 6.25 epochs")),
        ({"warmup_epochs": 4, "warmup_prefix": True, "cooldown_epochs": 2}, ("end within the run", "leave 0, but")),
        ({"num_epochs": 5, "cooldown_epochs": 2}, ("end within the run, 6 epochs", "leave 4, but got 5 epochs")),
        ({"sched": "wsd", "num_epochs": 7}, ("end within the run", "leave 6, but got 7")),
        ({"sched": "wsd", "warmup_epochs": 4, "decay_epochs": 3}, ("decay_epochs", "leaves of the run, 2", "got 3")),
        ({"sched": "rsqrt", "warmup_epochs": 6}, ("decay_epochs", "leaves of the run, 0 epochs", "got 0.2")),
        ({"sched": "wsd", "warmup_epochs": 4.5, "decay_epochs": 1.5}, ("decay_epochs", "run, 1.5 epochs", "got 1.5")),
        (
            {"sched": "wsd", "warmup_epochs": 4},
            ("decay_epochs to be at least one epoch", "got 0.2", "none in 2 epochs"),
        ),
        (
            {"sched": "wsd", "decay_epochs": 0.01, "step_on_epochs": False},
            ("decay_epochs to be at least one update", "got 0.01", "none in 6 epochs"),
        ),
        ({"sched": "rsqrt"}, ("stable_timescale beside sched='rsqrt' without a warm-up", "got None", "a warm-up")),
        ({"sched": "rsqrt", "warmup_fraction": 0.01}, ("stable_timescale beside sched='rsqrt'", "got None")),
        ({"sched": "step"}, ("decay_epochs to begin within the run, 6 epochs", "never decay", "got 90")),
        ({"sched": "step", "decay_epochs": 4, "warmup_epochs": 2, "warmup_prefix": True}, ("decay_epochs", "got 4")),
        ({"sched": "multistep", "decay_milestones": [8, 6]}, ("decay_milestones to begin within", "got 6")),
        ({"sched": "multistep"}, ("decay_milestones to begin within", "got 90")),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_an_error_before_training(
    settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    with refused(ValueError, *words):
        simulate_schedule(settings, lr=LR, **RUN)
    optimizer = layered_optimizer()
    trainer = make_trainer(TimmTrainer, optimizer.model, optimizer=optimizer, scheduler_args=settings)
    with refused(ValueError, *words):
        fit(trainer, num_epochs=EPOCHS)
    assert not hasattr(optimizer, "noted")


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_epochs": 6},
        {"warmup_epochs": 3, "warmup_prefix": True, "cooldown_epochs": 2},
        {"num_epochs": 4, "cooldown_epochs": 2},
        {"sched": "step", "decay_epochs": 5},
        {"sched": "multistep", "decay_milestones": [5, 60]},
        {"sched": "wsd", "warmup_epochs": 3, "decay_epochs": 3},
        {"sched": "wsd", "warmup_epochs": 3, "decay_epochs": 3, "warmup_prefix": True},
        {"sched": "wsd", "warmup_epochs": 3},
        {"sched": "wsd", "decay_epochs": 0.03, "step_on_epochs": False},
        {"sched": "rsqrt", "stable_timescale": 0.5},
        {"sched": "none", "warmup_epochs": 7},
        {"sched": "plateau", "num_epochs": 20},
    ],
)
def test_a_schedule_that_just_fits_is_none(settings: dict[str, Any]) -> None:
    check_fits(settings, **RUN)
    create_schedule(layered_optimizer(), settings, **RUN)


def test_a_run_cut_short_by_updates_may_end_within_the_warm_up() -> None:
    optimizer = layered_optimizer()
    settings = {"warmup_epochs": 3, "warmup_prefix": True}
    trainer = make_trainer(TimmTrainer, optimizer.model, optimizer=optimizer, scheduler_args=settings)
    fit(trainer, num_epochs=EPOCHS, max_num_train_steps=2)
    assert len(optimizer.noted) == 2
    with refused(ValueError, "decay_epochs to be no longer", "leaves of the run, 0 epochs"):  # timm would raise its own
        create_schedule(layered_optimizer(), {"sched": "wsd", "warmup_epochs": 6}, **RUN)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warm_up_fraction": 0.1}, ("arguments of timm's create_scheduler_v2", "Did you mean 'warmup_fraction'")),
        ({"warmup_epochs": 1, "warmup_fraction": 0.1}, ("one length of the warmup", "warmup_epochs and")),
        ({"cooldown_fraction": 1}, ("cooldown_fraction to be a share of the run from 0 to below 1", "got 1")),
        ({"warmup_epochs": -1}, ("warmup_epochs to be a number from 0 on", "got -1")),
        ({"warmup_updates": 3}, ("step_on_epochs=False beside warmup_updates", "or warmup_epochs")),
        ({"sched": "plateau", "step_on_epochs": False}, ("step_on_epochs to be True", "once an epoch")),
        ({"sched": "cosin"}, ("scheduler of timm", "Did you mean 'cosine'")),
        ({"cycle_limit": 0}, ("cycle_limit to be an integer of at least 1", "got 0")),
        ({"cycle_limit": 1.5}, ("cycle_limit to be an integer of at least 1", "got 1.5")),
        ({"cycle_limit": 2, "cycle_mul": 0}, ("cycle_mul to be positive", "got 0")),
        ({"sched": "step", "decay_epochs": 0}, ("decay_epochs to be positive", "got 0", "None")),
        ({"sched": "rsqrt", "stable_timescale": -1}, ("stable_timescale to be positive", "got -1")),
        *(
            (
                {"sched": sched, "cooldown_epochs": 1},
                ("a cooldown with one of cosine", "no minimum learning rate", repr(sched)),
            )
            for sched in ("step", "multistep", "constant", "plateau", "none")
        ),
        (
            {"sched": "step", "cooldown_fraction": 0.1, "decay_epochs": 2},
            ("a cooldown with one of cosine, tanh, poly, wsd, rsqrt", "'step'"),
        ),
    ],
)
def test_arguments_that_no_run_can_use_are_refused_at_once(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        make_trainer(TimmTrainer, scheduler_args=settings)
    with refused(ValueError, *words):
        create_schedule(layered_optimizer(), settings, **RUN)
    with refused(ValueError, *words):
        simulate_schedule(settings, lr=LR, **RUN)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"num_epochs": None}, ValueError, ("num_epochs to be an integer", "got None")),
        ({"updates_per_epoch": 0}, ValueError, ("updates_per_epoch to be an integer", "got 0")),
        ({"num_processes": 0}, ValueError, ("num_processes to be an integer of at least 1", "got 0")),
        ({"lr": None}, ValueError, ("lr or optimizer", "got neither")),
        ({"optimizer": layered_optimizer()}, ValueError, ("lr or optimizer", "got both")),
        ({"schedule": {"sched": "plateau"}}, ValueError, ("metrics to be 6 values", "got None")),
        ({"schedule": {"sched": "plateau"}, "metrics": [1.0]}, ValueError, ("metrics to be 6 values", "got 1")),
        ({"schedule": "cosine"}, TypeError, ("schedule to be a recipe", "got str")),
    ],
)
def test_a_simulation_names_what_it_lacks(
    options: dict[str, Any], kind: type[Exception], words: tuple[str, ...]
) -> None:
    settings = {"schedule": {"sched": "cosine"}, "lr": LR, **RUN} | options
    with refused(kind, *words):
        simulate_schedule(settings.pop("schedule"), **settings)


def test_an_optimizer_without_a_learning_rate_has_no_simulation() -> None:
    optimizer = layered_optimizer()
    optimizer.param_groups[1]["lr"] = None
    with refused(ValueError, "group 1 to have a learning rate", "Pass lr"):
        simulate_schedule({}, optimizer=optimizer, **RUN)


@pytest.mark.parametrize(
    ("scheduler_args", "num_epochs", "warmup"),
    [
        *(({"warmup_epochs": 3}, num_epochs, warmup) for num_epochs, warmup in
          ((1, 0), (2, 1), (3, 1), (4, 2), (6, 3), (7, 3), (40, 3))),
        ({"warmup_epochs": 2.5}, 4, 2),
        ({"warmup_epochs": 2.5}, 10, 2.5),
        ({"warmup_epochs": 3, "cooldown_epochs": 5}, 8, 1),  # half of 3
        ({"warmup_epochs": 3, "cooldown_fraction": 0.5}, 8, 2),
        ({"warmup_epochs": 3, "cooldown_epochs": 5}, 3, 0),  # the cooldown alone is too long
        ({"warmup_epochs": 3, "sched": "wsd", "decay_epochs": 5}, 6, 1),
        ({"warmup_epochs": 3, "sched": "wsd", "decay_epochs": 6}, 6, 0),
        ({"warmup_epochs": 3, "sched": "step", "decay_epochs": 90}, 8, 3),  # no warm-up makes it fit
        ({"warmup_epochs": 3, "cooldown_epochs": "ten"}, 2, 3),  # is refused elsewhere
        ({"warmup_epochs": 3, "cycle_limt": 1}, 2, 1),
        ({"warmup_epochs": None}, 8, None),
        ({"warmup_fraction": 0.1}, 8, None),
    ],
)  # fmt: skip
def test_a_warmup_is_shortened_to_half_of_what_cooldown_and_decay_leave(
    scheduler_args: dict[str, Any], num_epochs: int, warmup: float | None
) -> None:
    assert bent_warmup(scheduler_args, num_epochs) == warmup

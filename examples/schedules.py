"""Draw the learning rate schedules of the article's chapter, and warm restarts of torch and timm.

    python examples/schedules.py

Each panel is a run of 300 epochs with 10 updates and a learning rate of 0.05, simulated without a model. Needs the
extra plots.
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from timm_accel.plots import plot_schedule, save_figure
from timm_accel.schedules import SimulatedSchedule, simulate_schedule

NUM_EPOCHS, UPDATES_PER_EPOCH, LR = 300, 10, 0.05
HALF, COLUMNS = NUM_EPOCHS // 2, 4
RESTARTS = {"num_epochs": HALF, "cycle_limit": HALF + 1, "cycle_decay": 1.0}  # the restart is in the middle of the run
STALLING = [1 / (1 + epoch) if epoch < 60 else 0.02 for epoch in range(NUM_EPOCHS)]  # a loss for plateau

SCHEDULES: dict[str, dict[str, Any]] = {
    "step": {"sched": "step", "decay_epochs": 60, "decay_rate": 0.5},
    "multistep": {"sched": "multistep", "decay_milestones": [90, 180, 270]},
    "plateau, for a loss that stalls at 60": {"sched": "plateau", "patience_epochs": 40, "plateau_mode": "min"},
    "cosine": {"sched": "cosine", "min_lr": 1e-5},
    "cosine, warm-up of 20": {"min_lr": 1e-5, "warmup_epochs": 20, "warmup_lr": 0.01, **RESTARTS},
    "cosine, little noise": {"min_lr": 1e-5, "noise": [0, 1], "noise_pct": 0.1, **RESTARTS},
    "cosine, much noise": {"min_lr": 1e-5, "noise": [0, 1], "noise_pct": 0.8, **RESTARTS},
    "cosine, cycle_mul 2": {"step_on_epochs": False, **RESTARTS, "cycle_mul": 2.0},
    "cosine, cycle_limit 1": {"min_lr": 1e-5, "num_epochs": HALF},
    "cosine, cycle_decay 0.8": {"min_lr": 1e-5, **RESTARTS, "num_epochs": 50, "cycle_decay": 0.8},
    "cosine, k-decay 0.5": {"min_lr": 1e-5, "k_decay": 0.5, **RESTARTS},
    "cosine, k-decay 2": {"min_lr": 1e-5, "k_decay": 2, **RESTARTS},
    "timm's script: cooldown of 10": {"min_lr": 1e-6, "warmup_epochs": 3, "warmup_lr": 1e-4, "cooldown_epochs": 10},
    "tanh": {"sched": "tanh", "min_lr": 1e-5, **RESTARTS},
    "poly": {"sched": "poly", "decay_rate": 0.5, "min_lr": 1e-5, **RESTARTS},
    "poly, k-decay 0.5": {"sched": "poly", "decay_rate": 0.5, "min_lr": 1e-5, "k_decay": 0.5, **RESTARTS},
    "poly, k-decay 2": {"sched": "poly", "decay_rate": 0.5, "min_lr": 1e-5, "k_decay": 2, **RESTARTS},
    "wsd": {"sched": "wsd", "warmup_epochs": 20},
    "rsqrt": {"sched": "rsqrt", "warmup_epochs": 20},
}


def restarts(multiplier: int) -> dict[str, SimulatedSchedule]:
    """Plan the cosine with restarts of torch and of timm, both stepped after each update."""
    first = HALF * UPDATES_PER_EPOCH // multiplier
    kinds = {
        "torch": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, first, multiplier, eta_min=1e-6),
        "timm": lambda optimizer: CosineLRScheduler(
            optimizer, first, lr_min=1e-6, cycle_mul=multiplier, cycle_limit=HALF + 1, t_in_epochs=False
        ),
    }
    return {name: simulated(kind) for name, kind in kinds.items()}


def simulated(schedule: Any) -> SimulatedSchedule:
    """Plan one run of the article's chapter."""
    return simulate_schedule(
        schedule, lr=LR, num_epochs=NUM_EPOCHS, updates_per_epoch=UPDATES_PER_EPOCH, metrics=STALLING
    )


def panels() -> dict[str, SimulatedSchedule | Mapping[str, SimulatedSchedule]]:
    """Plan all panels, the comparisons with torch first."""
    compared = {f"CosineAnnealingWarmRestarts, T_mult {factor}": restarts(factor) for factor in (1, 2, 3)}
    return compared | {name: simulated(settings) for name, settings in SCHEDULES.items()}


def main(out: str | Path = "schedules.png") -> Path:
    """Write the figure, and return its path."""
    shown = panels()
    rows = ceil(len(shown) / COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * rows), dpi=100, layout="constrained")
    for part, (name, each) in zip(figure.subfigures(rows, COLUMNS).ravel(), shown.items(), strict=False):
        plot_schedule(each, title=name, figure=part)
    save_figure(figure, out)
    return Path(out)


if __name__ == "__main__":
    print(main())

"""The plan of a schedule: the rate of each group for each update of a run, by a simulation without a model."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from timm.scheduler import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from timm_accel.optim.lr_scaling import scale_lr
from timm_accel.schedules.fitting import check_fits, create_schedule

_PLATEAU = (PlateauLRScheduler, ReduceLROnPlateau)


@runtime_checkable
class DescribesSchedule(Protocol):
    """A description of a run, such as a `Recipe`."""

    num_epochs: int
    lr: float
    opt: str
    base_batch_size: int | None
    lr_scaling: Literal["linear", "sqrt"] | None
    batch_size: int
    gradient_accumulation_steps: int

    def scheduler_args(self) -> dict[str, Any]:
        """Return the arguments of timm's ``create_scheduler_v2``."""


@dataclass(frozen=True)
class SimulatedSchedule:
    """The rates that a run will use.

    Args:
        rates: The rate of each group for each update, ``(updates, groups)``, layer decay included.
        updates: The number of each update, from 0, ``(updates,)``.
        epochs: Where each update begins, in epochs, ``(updates,)``.
    """

    rates: np.ndarray
    updates: np.ndarray
    epochs: np.ndarray


def simulate_schedule(
    schedule: DescribesSchedule | Mapping[str, Any] | Callable[[Optimizer], Any],
    *,
    updates_per_epoch: int,
    num_epochs: int | None = None,
    lr: float | None = None,
    optimizer: Optimizer | None = None,
    metrics: Sequence[float] | None = None,
    num_processes: int = 1,
) -> SimulatedSchedule:
    """Return the rate of each group for each update of a run, by running the schedule without a model.

    They are those that `TimmSchedulerMixin` gives a run of this length with this rate or optimizer. A recipe's rate is
    scaled by its ``base_batch_size`` as in its run. Its layer decay needs the layers of a model: without `optimizer`
    there is one group, with the rate of the head, which is the highest. The optimizer stays as it is.

    Args:
        schedule: A `Recipe`, the ``scheduler_args`` of a trainer, or a function that makes a scheduler of timm or torch
            from an optimizer.
        updates_per_epoch: Optimizer updates in one epoch.
        num_epochs: Epochs of the run; a recipe has its own.
        lr: The highest rate; a recipe has its own.
        optimizer: Instead of `lr`: one whose groups have the rates, and a ``lr_scale`` under layer decay.
        metrics: What the run measures after each epoch, for a plateau schedule, ``(num_epochs,)``.
        num_processes: Processes of the run, by which a recipe's rate is scaled too.

    Raises:
        TypeError: `schedule` is none of these.
        ValueError: The schedule does not fit the run, a length or a rate is missing, or a plateau schedule has no
            metrics.
    """
    _check_counts(num_processes=num_processes)
    if isinstance(schedule, DescribesSchedule):
        num_epochs = schedule.num_epochs if num_epochs is None else num_epochs
        lr = _lr_of(schedule, num_processes) if lr is None and optimizer is None else lr
        schedule = schedule.scheduler_args()
    _check_counts(num_epochs=num_epochs, updates_per_epoch=updates_per_epoch)
    assert num_epochs is not None
    stand_in = _stand_in(lr, optimizer)
    scheduler = _create(schedule, stand_in, num_epochs, updates_per_epoch)
    if isinstance(scheduler, _PLATEAU) and (metrics is None or len(metrics) != num_epochs):
        raise ValueError(
            f"Expected metrics to be {num_epochs} values, one for each epoch, since a plateau schedule follows them, "
            f"but got {None if metrics is None else len(metrics)}. Pass metrics, or choose another schedule."
        )
    rates = _simulate(scheduler, stand_in, num_epochs, updates_per_epoch, metrics or [0.0] * num_epochs)
    updates = np.arange(len(rates))
    return SimulatedSchedule(rates, updates, updates / updates_per_epoch)


def _lr_of(described: DescribesSchedule, num_processes: int) -> float:
    """Return the highest rate of a described run, scaled by its global batch where it asks for that."""
    if described.base_batch_size is None:
        return described.lr
    return scale_lr(
        described.lr,
        described.batch_size * described.gradient_accumulation_steps * num_processes,
        opt=described.opt,
        base_batch_size=described.base_batch_size,
        lr_scaling=described.lr_scaling,
    )


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"Expected {name} to be a whole number of at least 1, but got {count!r}. Pass {name}.")


def _stand_in(lr: float | None, optimizer: Optimizer | None) -> SGD:
    """Return an optimizer of single numbers with the same rates, which may be stepped for nothing."""
    if (lr is None) == (optimizer is None):
        raise ValueError(f"Expected lr or optimizer, but got {'neither' if lr is None else 'both'}. Pass one of them.")
    groups: list[dict[str, Any]] = [{"lr": lr}]
    if optimizer is not None:
        kept = ("lr", "lr_scale", "initial_lr")
        groups = [{name: group[name] for name in kept if name in group} for group in optimizer.param_groups]
    for number, group in enumerate(groups):
        if group["lr"] is None:
            raise ValueError(
                f"Expected the optimizer's group {number} to have a rate, but got None, since it finds its own. "
                "Pass lr to the optimizer."
            )
        group["params"] = [nn.Parameter(torch.zeros(()))]
    return SGD(groups, momentum=0.9)  # which torch's OneCycleLR looks for


def _create(schedule: Any, optimizer: Optimizer, num_epochs: int, updates_per_epoch: int) -> Any:
    if isinstance(schedule, Mapping):
        length = {"num_epochs": num_epochs, "updates_per_epoch": updates_per_epoch}
        check_fits(schedule, **length)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="PlateauLRScheduler is deprecated", category=FutureWarning)
            return create_schedule(optimizer, schedule, **length)
    if not callable(schedule):
        raise TypeError(
            "Expected schedule to be a recipe, a dict of scheduler_args, or a function of the optimizer, but got "
            f"{type(schedule).__name__}. A scheduler that is made already cannot be run again from its start."
        )
    return schedule(optimizer)


def _simulate(
    scheduler: Any, optimizer: Optimizer, num_epochs: int, updates_per_epoch: int, metrics: Sequence[float]
) -> np.ndarray:
    """Run the loop's order: the update, the scheduler's step, and its other step at the end of each epoch."""
    groups, scaled = optimizer.param_groups, isinstance(scheduler, Scheduler)
    rates: list[list[float]] = []
    for epoch in range(num_epochs):
        for update in range(epoch * updates_per_epoch, (epoch + 1) * updates_per_epoch):
            rates.append([group["lr"] * (1 if scaled else group.get("lr_scale", 1)) for group in groups])
            optimizer.step()
            if scaled:
                scheduler.step_update(update + 1)
            elif scheduler is not None and not isinstance(scheduler, _PLATEAU):
                scheduler.step()
        if scaled:
            scheduler.step(epoch + 1, metrics[epoch])
        elif isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(metrics[epoch])
    return np.array(rates)

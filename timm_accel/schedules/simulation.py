"""Simulate a schedule without a model: the learning rate of each group for each update of a run."""

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
    """The options of a run that a simulation reads, such as those of a `Recipe`."""

    num_epochs: int
    lr: float
    opt: str
    base_batch_size: int | None
    lr_scaling: Literal["linear", "sqrt"] | None
    batch_size: Any
    gradient_accumulation_steps: int

    def scheduler_args(self) -> dict[str, Any]:
        """Return the arguments of timm's ``create_scheduler_v2``."""


@dataclass(frozen=True)
class SimulatedSchedule:
    """The learning rates that a run will use.

    Args:
        learning_rates: The learning rate of each group for each update, ``(updates, groups)``, with layer decay.
        updates: The number of each update, from 0, ``(updates,)``.
        epochs: The start of each update in epochs, ``(updates,)``.
    """

    learning_rates: np.ndarray
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
    """Return the learning rate of each group for each update of a run, by running the schedule without a model.

    `TimmSchedulerMixin` sets the same learning rates in a run of this length with this `lr` or `optimizer`. A recipe's
    learning rate is scaled by its ``base_batch_size`` as in its run. Layer decay needs the layers of a model: without
    `optimizer` there is one group with the learning rate of the head, which is the highest. The optimizer does not
    change.

    Args:
        schedule: A `Recipe`, the ``scheduler_args`` of a trainer, or a function that creates a scheduler of timm or
            torch from an optimizer.
        updates_per_epoch: Optimizer updates in one epoch.
        num_epochs: Epochs of the run; None for those of the recipe.
        lr: The highest learning rate; None for that of the recipe.
        optimizer: An optimizer instead of `lr`. Its groups have the learning rates, and a ``lr_scale`` for layer decay.
        metrics: The metric after each epoch, for a plateau schedule, ``(num_epochs,)``.
        num_processes: Processes of the run; they also scale a recipe's learning rate.

    Raises:
        TypeError: `schedule` is of another kind.
        ValueError: The schedule does not fit the run, a length or a learning rate is missing, or a plateau schedule has
            no metrics.
    """
    _check_counts(num_processes=num_processes)
    if isinstance(schedule, DescribesSchedule):
        num_epochs = schedule.num_epochs if num_epochs is None else num_epochs
        lr = _lr_of(schedule, num_processes) if lr is None and optimizer is None else lr
        schedule = schedule.scheduler_args()
    _check_counts(num_epochs=num_epochs, updates_per_epoch=updates_per_epoch)
    assert num_epochs is not None
    dummy = _dummy_optimizer(lr, optimizer)
    scheduler = _create(schedule, dummy, num_epochs, updates_per_epoch)
    if isinstance(scheduler, _PLATEAU) and (metrics is None or len(metrics) != num_epochs):
        raise ValueError(
            f"Expected metrics to be {num_epochs} values, one for each epoch, since a plateau schedule follows them, "
            f"but got {None if metrics is None else len(metrics)}. Pass metrics, or choose another schedule."
        )
    lrs = _simulate(scheduler, dummy, num_epochs, updates_per_epoch, metrics or [0.0] * num_epochs)
    updates = np.arange(len(lrs))
    return SimulatedSchedule(lrs, updates, updates / updates_per_epoch)


def _lr_of(described: DescribesSchedule, num_processes: int) -> float:
    """Return the highest learning rate of a run, scaled by its global batch size if it has a ``base_batch_size``."""
    if described.base_batch_size is None:
        return described.lr
    if isinstance(described.batch_size, str):
        raise ValueError(
            f"Expected batch_size to be a number beside base_batch_size, since the learning rate follows it, but got "
            f"{described.batch_size!r}. Pass lr, or a recipe with the batch size of the run."
        )
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
            raise ValueError(f"Expected {name} to be an integer of at least 1, but got {count!r}. Pass {name}.")


def _dummy_optimizer(lr: float | None, optimizer: Optimizer | None) -> SGD:
    """Return a dummy optimizer of single numbers with the same learning rates."""
    if (lr is None) == (optimizer is None):
        raise ValueError(f"Expected lr or optimizer, but got {'neither' if lr is None else 'both'}. Pass one of them.")
    groups: list[dict[str, Any]] = [{"lr": lr}]
    if optimizer is not None:
        copied = ("lr", "lr_scale", "initial_lr")
        groups = [{name: group[name] for name in copied if name in group} for group in optimizer.param_groups]
    for number, group in enumerate(groups):
        if group["lr"] is None:
            raise ValueError(
                f"Expected the optimizer's group {number} to have a learning rate, but got None, since it finds its "
                "own. Pass lr to the optimizer."
            )
        group["params"] = [nn.Parameter(torch.zeros(()))]
    return SGD(groups, momentum=0.9)  # torch's OneCycleLR needs a momentum


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
            f"{type(schedule).__name__}. An existing scheduler cannot be run again from its start."
        )
    return schedule(optimizer)


def _simulate(
    scheduler: Any, optimizer: Optimizer, num_epochs: int, updates_per_epoch: int, metrics: Sequence[float]
) -> np.ndarray:
    """Run in the order of the training loop: update and scheduler step, then the step at the end of an epoch."""
    groups, scaled = optimizer.param_groups, isinstance(scheduler, Scheduler)
    lrs: list[list[float]] = []
    for epoch in range(num_epochs):
        for update in range(epoch * updates_per_epoch, (epoch + 1) * updates_per_epoch):
            lrs.append([group["lr"] * (1 if scaled else group.get("lr_scale", 1)) for group in groups])
            optimizer.step()
            if scaled:
                scheduler.step_update(update + 1)
            elif scheduler is not None and not isinstance(scheduler, _PLATEAU):
                scheduler.step()
        if scaled:
            scheduler.step(epoch + 1, metrics[epoch])
        elif isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(metrics[epoch])
    return np.array(lrs)

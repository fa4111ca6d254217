"""Fit timm's schedules to a run: warm-up prefix, cycles and cooldown lie inside its epochs.

timm's ``create_scheduler_v2`` takes the length of the first cycle, and returns how many epochs the run must then have.
Here the run is given: unless ``num_epochs`` is among the arguments, the schedule ends where the run ends.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import floor
from typing import Any

from timm.scheduler import create_scheduler_v2
from torch.optim import Optimizer

from timm_accel.schedules.arguments import (
    COOLS_DOWN,
    CYCLIC,
    PREFIXED,
    TIMM_ARGUMENTS,
    check_scheduler_args,
    steps_on_epochs,
    unknown_arguments,
    wrong_values,
)

_FIRST_DECAY = {"step": "decay_epochs", "multistep": "decay_milestones"}


def schedule_faults(
    scheduler_args: Mapping[str, Any], *, num_epochs: int, updates_per_epoch: int | None = None
) -> Iterator[str]:
    """Yield a sentence on each thing for which `check_scheduler_args` or `check_fits` would raise.

    Args:
        scheduler_args: As for `create_schedule`.
        num_epochs: Epochs of the run.
        updates_per_epoch: Optimizer updates in one epoch; None where they are unknown: a length in updates then counts
            as 0.
    """
    yield from unknown_arguments(scheduler_args)
    wrong = list(wrong_values(scheduler_args))
    yield from wrong or _misfits(scheduler_args, num_epochs, updates_per_epoch)


def create_schedule(
    optimizer: Optimizer, scheduler_args: Mapping[str, Any], *, num_epochs: int, updates_per_epoch: int
) -> Any:
    """Create a timm scheduler that ends where the run ends.

    Args:
        optimizer: The optimizer whose groups are scheduled.
        scheduler_args: Arguments of timm's ``create_scheduler_v2``. Warm-up and cooldown may also be given as
            ``warmup_updates`` or ``warmup_fraction`` (of the run, rounded to whole epochs, or to whole updates with
            ``step_on_epochs=False``), and the same for the cooldown. ``num_epochs``, when given, is timm's: the length
            of the first cycle.
        num_epochs: Epochs of the run.
        updates_per_epoch: Optimizer updates in one epoch.

    Returns:
        The scheduler, or None for ``sched="none"``.

    Raises:
        ValueError: As `check_scheduler_args`; or the run has no room for the decay of ``wsd`` or ``rsqrt``.

    Source: ``timm.scheduler.create_scheduler_v2``.
    """
    check_scheduler_args(scheduler_args)
    updates_per_epoch = scheduler_args.get("updates_per_epoch", updates_per_epoch)
    steps = 1 if steps_on_epochs(scheduler_args) else updates_per_epoch
    lengths = {name: _epochs(scheduler_args, name, num_epochs, updates_per_epoch) for name in ("warmup", "cooldown")}
    given = {name: value for name, value in scheduler_args.items() if name in TIMM_ARGUMENTS}
    given |= {f"{name}_epochs": _plain(length) for name, length in lengths.items()}
    left = max(_left(scheduler_args, lengths, num_epochs) / _cycles(scheduler_args), Fraction(1, steps))
    if scheduler_args.get("sched") in PREFIXED:
        cycle = Fraction(scheduler_args.get("num_epochs", left))
        for fault in _misfit_of_decay(scheduler_args, cycle, lengths["warmup"], steps):
            raise ValueError(fault)
    return create_scheduler_v2(
        optimizer, **({"num_epochs": _plain(left), "updates_per_epoch": updates_per_epoch} | given)
    )[0]


def check_fits(scheduler_args: Mapping[str, Any], *, num_epochs: int, updates_per_epoch: int) -> None:
    """Raise when a schedule does not fit the run.

    Args:
        scheduler_args: As for `create_schedule`.
        num_epochs: Epochs of the run.
        updates_per_epoch: Optimizer updates in one epoch.

    Raises:
        ValueError: As `check_scheduler_args`; warm-up, first cycle and cooldown are longer than the run, or the first
            decay lies beyond it.
    """
    for fault in schedule_faults(scheduler_args, num_epochs=num_epochs, updates_per_epoch=updates_per_epoch):
        raise ValueError(fault)


def bent_warmup(scheduler_args: Mapping[str, Any], num_epochs: int) -> int | float | None:
    """Return the warm-up of a schedule for a run that may be too short for it, in epochs.

    It is at most half of what a cooldown leaves of the run, in whole epochs, and shorter where the decay needs the
    room: a warm-up of 3 epochs is one of 0, 1, 1, 2 and 3 in runs of 1, 2, 3, 4 and 6 epochs.

    Args:
        scheduler_args: As for `create_schedule`.
        num_epochs: Epochs of the run.

    Returns:
        The warm-up; None where it is not given in epochs.
    """
    warmup = scheduler_args.get("warmup_epochs")
    others = {name: value for name, value in scheduler_args.items() if name != "warmup_epochs"}
    if not isinstance(warmup, int | float) or any(wrong_values(others)):
        return warmup
    share = max(0, floor((num_epochs - _epochs(others, "cooldown", num_epochs, None)) / 2))
    longest = min(warmup, share)
    shorter = [longest, *range(floor(longest), -1, -1)]
    return next((each for each in shorter if _fits(scheduler_args, each, num_epochs)), longest)


def _fits(scheduler_args: Mapping[str, Any], warmup: float, num_epochs: int) -> bool:
    return not any(schedule_faults({**scheduler_args, "warmup_epochs": warmup}, num_epochs=num_epochs))


def _misfits(scheduler_args: Mapping[str, Any], num_epochs: int, updates_per_epoch: int | None) -> Iterator[str]:
    lengths = {name: _epochs(scheduler_args, name, num_epochs, updates_per_epoch) for name in ("warmup", "cooldown")}
    sched = scheduler_args.get("sched", "cosine")
    if sched == "none":
        return
    too_long = [name for name, length in lengths.items() if length > num_epochs]
    for name in too_long:
        yield (
            f"Expected the {name} to be no longer than the run, {num_epochs} epochs, but got {float(lengths[name]):g} "
            f"epochs. Lower {_given_length(scheduler_args, name)}, or train longer."
        )
    if too_long:
        return
    if sched in COOLS_DOWN:
        left = _left(scheduler_args, lengths, num_epochs)
        cycle = Fraction(scheduler_args.get("num_epochs", left))
        if not 0 < cycle <= left:
            yield (
                f"Expected the schedule to end within the run, {num_epochs} epochs, of which warm-up prefix and "
                f"cooldown leave {float(left):g}, but got {float(cycle):g} epochs. Shorten them or scheduler_args["
                "'num_epochs'], or train longer."
            )
        elif sched in PREFIXED:
            steps = 1 if steps_on_epochs(scheduler_args) else updates_per_epoch
            yield from _misfit_of_decay(scheduler_args, cycle, lengths["warmup"], steps)
    elif sched in _FIRST_DECAY:
        yield from _late_decay(scheduler_args, _FIRST_DECAY[sched], lengths["warmup"], num_epochs)


def _late_decay(scheduler_args: Mapping[str, Any], name: str, warmup: Fraction, num_epochs: int) -> Iterator[str]:
    value: Any = scheduler_args.get(name) or TIMM_ARGUMENTS[name] or 90  # timm's decay_epochs of None
    first = value if name == "decay_epochs" else min(value)
    if first + (warmup if scheduler_args.get("warmup_prefix") else 0) >= num_epochs:
        yield (
            f"Expected {name} to begin within the run, {num_epochs} epochs, since the learning rate would never "
            f"decay, but got {first:g}. Pass smaller {name}, or train longer."
        )


def _misfit_of_decay(
    scheduler_args: Mapping[str, Any], cycle: Fraction, warmup: Fraction, steps: int | None
) -> Iterator[str]:
    """Yield why timm's ``wsd`` or ``rsqrt`` cannot have its phases; `steps` are those of an epoch."""
    room = cycle if scheduler_args.get("warmup_prefix") else cycle - warmup
    decay = scheduler_args.get("decay_epochs") or 0.2
    scale = steps or 1
    length = decay * (room * scale) if decay < 1 else decay * scale
    length = round(length) if steps else length  # timm rounds to whole steps
    if room <= 0 or length > room * scale:
        yield (
            f"Expected decay_epochs to be no longer than what the warm-up leaves of the run, {float(room):g} epochs, "
            f"but got {decay:g}. Shorten it or the warm-up, or train longer."
        )
    elif length == 0:
        unit = "epoch" if steps == 1 else "update"
        yield (
            f"Expected decay_epochs to be at least one {unit}, since the schedule steps with each, but got {decay:g}, "
            f"which is none in {float(room):g} epochs. Lengthen it, pass step_on_epochs=False, or train longer."
        )
    if scheduler_args["sched"] == "rsqrt" and not (
        scheduler_args.get("stable_timescale") or warmup or scheduler_args.get("warmup_updates")
    ):
        yield (
            "Expected stable_timescale beside sched='rsqrt' without a warm-up, since the warm-up's length is its "
            "default, but got None. Pass a number of epochs, or a warm-up."
        )


def _epochs(scheduler_args: Mapping[str, Any], name: str, num_epochs: int, updates_per_epoch: int | None) -> Fraction:
    """Return a length in epochs, exact, since timm multiplies it by the updates of an epoch again."""
    if (updates := scheduler_args.get(f"{name}_updates")) is not None:
        return Fraction(updates) / updates_per_epoch if updates_per_epoch else Fraction(0)
    if (share := scheduler_args.get(f"{name}_fraction")) is not None:
        steps = 1 if steps_on_epochs(scheduler_args) else updates_per_epoch
        return Fraction(round(share * num_epochs * steps), steps) if steps else Fraction(share) * num_epochs
    return Fraction(scheduler_args.get(f"{name}_epochs", 0))


def _given_length(scheduler_args: Mapping[str, Any], name: str) -> str:
    units = ("updates", "fraction", "epochs")
    return next(f"{name}_{unit}" for unit in units if unit == "epochs" or f"{name}_{unit}" in scheduler_args)


def _left(scheduler_args: Mapping[str, Any], lengths: Mapping[str, Fraction], num_epochs: int) -> Fraction:
    prefix = lengths["warmup"] if scheduler_args.get("warmup_prefix") else 0
    return num_epochs - lengths["cooldown"] - prefix


def _cycles(scheduler_args: Mapping[str, Any]) -> Fraction:
    """Return the length of all cycles as a multiple of the first."""
    if scheduler_args.get("sched", "cosine") not in CYCLIC:
        return Fraction(1)
    multiplier = Fraction(scheduler_args.get("cycle_mul", 1))
    return sum((multiplier**cycle for cycle in range(scheduler_args.get("cycle_limit", 1))), Fraction(0))


def _plain(length: Fraction) -> int | Fraction:
    return length.numerator if length.denominator == 1 else length

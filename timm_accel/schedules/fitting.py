"""timm's schedules, fitted to a run: warm-up prefix, cycles and cooldown lie inside its epochs.

timm's ``create_scheduler_v2`` takes the length of the first cycle, and returns how many epochs the run must then have.
Here the run is given: unless ``num_epochs`` is among the arguments, the schedule ends where the run ends.
"""

from collections.abc import Mapping
from fractions import Fraction
from inspect import signature
from typing import Any

from timm.scheduler import create_scheduler_v2
from torch.optim import Optimizer

from timm_accel.suggestions import nearest

SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "plateau", "none")
TIMM_ARGUMENTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in signature(create_scheduler_v2).parameters.items()
    if name != "optimizer"
}
_CYCLIC = ("cosine", "tanh", "poly")
_PREFIXED = ("wsd", "rsqrt")
_FIRST_DECAY = {"step": "decay_epochs", "multistep": "decay_milestones"}
_UNITS = ("epochs", "updates", "fraction")
_OURS = tuple(f"{name}_{unit}" for name in ("warmup", "cooldown") for unit in _UNITS[1:])


def check_scheduler_args(scheduler_args: Mapping[str, Any]) -> None:
    """Raise for arguments that no run can use.

    Args:
        scheduler_args: As for `create_schedule`.

    Raises:
        ValueError: An argument or the scheduler's name is unknown, a length is negative or given in two units, or the
            arguments exclude each other.
    """
    known = [*TIMM_ARGUMENTS, *_OURS]
    for name in scheduler_args:
        if name not in known:
            raise ValueError(
                f"Expected scheduler_args to be arguments of timm's create_scheduler_v2, but got {name!r}. "
                f"{nearest(name, known)}"
            )
    sched = scheduler_args.get("sched", "cosine")
    if sched not in SCHEDULERS:
        raise ValueError(
            f"Expected scheduler_args['sched'] to be a scheduler of timm, but got {sched!r}. "
            f"{nearest(sched, SCHEDULERS)}"
        )
    for name in ("warmup", "cooldown"):
        _check_length(scheduler_args, name)
    if sched == "plateau" and not _steps_on_epochs(scheduler_args):
        raise ValueError(
            "Expected step_on_epochs to be True beside sched='plateau', since its metric comes once an epoch, but got "
            "False. Leave it out, or choose another schedule."
        )


def _check_length(scheduler_args: Mapping[str, Any], name: str) -> None:
    given = [f"{name}_{unit}" for unit in _UNITS if f"{name}_{unit}" in scheduler_args]
    if len(given) > 1:
        raise ValueError(f"Expected one length of the {name}, but got {' and '.join(given)}. Leave one of them out.")
    for argument in given:
        value = scheduler_args[argument]
        if not (isinstance(value, int | float) and value >= 0 and (value < 1 or not argument.endswith("fraction"))):
            bounds = "a share of the run from 0 to below 1" if argument.endswith("fraction") else "a number from 0 on"
            raise ValueError(f"Expected {argument} to be {bounds}, but got {value!r}. 0 is none.")
        if argument.endswith("updates") and _steps_on_epochs(scheduler_args):
            raise ValueError(
                f"Expected step_on_epochs=False beside {argument}, since updates are counted by a schedule that steps "
                f"with each update, but got True. Pass step_on_epochs=False, or {name}_epochs."
            )


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
        ValueError: As `check_scheduler_args`.

    Source: ``timm.scheduler.create_scheduler_v2``.
    """
    check_scheduler_args(scheduler_args)
    updates_per_epoch = scheduler_args.get("updates_per_epoch", updates_per_epoch)
    steps = 1 if _steps_on_epochs(scheduler_args) else updates_per_epoch
    lengths = {name: _epochs(scheduler_args, name, num_epochs, updates_per_epoch) for name in ("warmup", "cooldown")}
    given = {name: value for name, value in scheduler_args.items() if name in TIMM_ARGUMENTS}
    given |= {f"{name}_epochs": _plain(length) for name, length in lengths.items()}
    left = max(_left(scheduler_args, lengths, num_epochs) / _cycles(scheduler_args), Fraction(1, steps))
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
    check_scheduler_args(scheduler_args)
    lengths = {name: _epochs(scheduler_args, name, num_epochs, updates_per_epoch) for name in ("warmup", "cooldown")}
    sched = scheduler_args.get("sched", "cosine")
    if sched == "none":
        return
    for name, length in lengths.items():
        if length > num_epochs:
            raise ValueError(
                f"Expected the {name} to be no longer than the run, {num_epochs} epochs, but got {float(length):g} "
                f"epochs. Shorten it, or train longer."
            )
    if sched in (*_CYCLIC, *_PREFIXED):
        left = _left(scheduler_args, lengths, num_epochs)
        cycle = Fraction(scheduler_args.get("num_epochs", left))
        if not 0 < cycle <= left:
            raise ValueError(
                f"Expected the schedule to end within the run, {num_epochs} epochs, of which warm-up prefix and "
                f"cooldown leave {float(left):g}, but got {float(cycle):g} epochs. Shorten them or scheduler_args["
                "'num_epochs'], or train longer."
            )
        if sched in _PREFIXED:
            _check_decay(scheduler_args, cycle, lengths["warmup"])
    elif sched in _FIRST_DECAY:
        _check_first_decay(scheduler_args, _FIRST_DECAY[sched], lengths["warmup"], num_epochs)


def _check_first_decay(scheduler_args: Mapping[str, Any], name: str, warmup: Fraction, num_epochs: int) -> None:
    value: Any = scheduler_args.get(name) or TIMM_ARGUMENTS[name] or 90  # timm's decay_epochs of None
    first = value if name == "decay_epochs" else min(value)
    if first + (warmup if scheduler_args.get("warmup_prefix") else 0) >= num_epochs:
        raise ValueError(
            f"Expected {name} to begin within the run, {num_epochs} epochs, since the rate would never decay, but got "
            f"{first:g}. Pass smaller {name}, or train longer."
        )


def _check_decay(scheduler_args: Mapping[str, Any], cycle: Fraction, warmup: Fraction) -> None:
    room = cycle if scheduler_args.get("warmup_prefix") else cycle - warmup
    decay = scheduler_args.get("decay_epochs") or 0.2
    if room <= 0 or not (0 < decay < 1 or decay <= room):
        raise ValueError(
            f"Expected decay_epochs to be no longer than what the warm-up leaves of the run, {float(room):g} epochs, "
            f"but got {decay:g}. Shorten it or the warm-up, or train longer."
        )


def _steps_on_epochs(scheduler_args: Mapping[str, Any]) -> bool:
    return bool(scheduler_args.get("step_on_epochs", True))


def _epochs(scheduler_args: Mapping[str, Any], name: str, num_epochs: int, updates_per_epoch: int) -> Fraction:
    """Return a length in epochs, exact, since timm multiplies it by the updates of an epoch again."""
    if (updates := scheduler_args.get(f"{name}_updates")) is not None:
        return Fraction(updates) / updates_per_epoch
    if (share := scheduler_args.get(f"{name}_fraction")) is not None:
        steps = 1 if _steps_on_epochs(scheduler_args) else updates_per_epoch
        return Fraction(round(share * num_epochs * steps), steps)
    return Fraction(scheduler_args.get(f"{name}_epochs", 0))


def _left(scheduler_args: Mapping[str, Any], lengths: Mapping[str, Fraction], num_epochs: int) -> Fraction:
    prefix = lengths["warmup"] if scheduler_args.get("warmup_prefix") else 0
    return num_epochs - lengths["cooldown"] - prefix


def _cycles(scheduler_args: Mapping[str, Any]) -> Fraction:
    """Return the length of all cycles as a multiple of the first."""
    if scheduler_args.get("sched", "cosine") not in _CYCLIC:
        return Fraction(1)
    multiplier = Fraction(scheduler_args.get("cycle_mul", 1))
    return sum((multiplier**cycle for cycle in range(scheduler_args.get("cycle_limit", 1))), Fraction(0))


def _plain(length: Fraction) -> int | Fraction:
    return length.numerator if length.denominator == 1 else length

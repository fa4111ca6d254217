"""Check the arguments of a schedule: those of timm's factory, and lengths in updates or fractions of the run."""

from collections.abc import Iterator, Mapping
from inspect import signature
from numbers import Real
from typing import Any

from timm.scheduler import create_scheduler_v2

from timm_accel.messages import nearest

SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "plateau", "none")
"""The schedules of timm, and ``none`` for a constant learning rate without a scheduler."""
TIMM_ARGUMENTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in signature(create_scheduler_v2).parameters.items()
    if name != "optimizer"
}
CYCLIC = ("cosine", "tanh", "poly")
PREFIXED = ("wsd", "rsqrt")
COOLS_DOWN = (*CYCLIC, *PREFIXED)
_UNITS = ("epochs", "updates", "fraction")
_OURS = tuple(f"{name}_{unit}" for name in ("warmup", "cooldown") for unit in _UNITS[1:])
_KNOWN = (*TIMM_ARGUMENTS, *_OURS)
_NUMBERS = {name for name, default in TIMM_ARGUMENTS.items() if type(default) in (int, float)} | {
    "decay_epochs",
    "stable_timescale",
}
_NUMBERS -= {"warmup_epochs", "cooldown_epochs"}  # `_wrong_length` checks these
_POSITIVE = ("decay_epochs", "stable_timescale", "cycle_mul")


def check_scheduler_args(scheduler_args: Mapping[str, Any]) -> None:
    """Raise for arguments that no run can use.

    Args:
        scheduler_args: As for `create_schedule`.

    Raises:
        ValueError: An argument or the scheduler's name is unknown, a length is negative or given in two units, or the
            arguments exclude each other.
    """
    for fault in (*unknown_arguments(scheduler_args), *wrong_values(scheduler_args)):
        raise ValueError(fault)


def unknown_arguments(scheduler_args: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each unknown argument."""
    for name in scheduler_args:
        if name not in _KNOWN:
            yield (
                f"Expected scheduler_args to be arguments of timm's create_scheduler_v2, but got {name!r}. "
                f"{nearest(name, _KNOWN)}"
            )


def wrong_values(scheduler_args: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each value that no run can use, and on those that exclude each other."""
    sched = scheduler_args.get("sched", "cosine")
    if sched not in SCHEDULERS:
        yield (
            f"Expected scheduler_args['sched'] to be a scheduler of timm, but got {sched!r}. "
            f"{nearest(sched, SCHEDULERS)}"
        )
    for name in ("warmup", "cooldown"):
        yield from _wrong_length(scheduler_args, name)
    yield from _wrong_numbers(scheduler_args)
    if sched in SCHEDULERS and sched not in COOLS_DOWN and any(scheduler_args.get(f"cooldown_{u}") for u in _UNITS):
        yield (
            f"Expected a cooldown with one of {', '.join(COOLS_DOWN)}, since others have no minimum learning rate to "
            f"hold, but got one with {sched!r}. Leave it out, or choose another schedule."
        )
    if sched == "plateau" and not steps_on_epochs(scheduler_args):
        yield (
            "Expected step_on_epochs to be True beside sched='plateau', since its metric comes once an epoch, but got "
            "False. Leave it out, or choose another schedule."
        )


def _wrong_length(scheduler_args: Mapping[str, Any], name: str) -> Iterator[str]:
    given = [f"{name}_{unit}" for unit in _UNITS if f"{name}_{unit}" in scheduler_args]
    if len(given) > 1:
        yield f"Expected one length of the {name}, but got {' and '.join(given)}. Leave one of them out."
    for argument in given:
        value = scheduler_args[argument]
        if not (isinstance(value, int | float) and value >= 0 and (value < 1 or not argument.endswith("fraction"))):
            bounds = "a share of the run from 0 to below 1" if argument.endswith("fraction") else "a number from 0 on"
            yield f"Expected {argument} to be {bounds}, but got {value!r}. 0 is none."
        if argument.endswith("updates") and steps_on_epochs(scheduler_args):
            yield (
                f"Expected step_on_epochs=False beside {argument}, since updates are counted by a schedule that steps "
                f"with each update, but got True. Pass step_on_epochs=False, or {name}_epochs."
            )


def _wrong_numbers(scheduler_args: Mapping[str, Any]) -> Iterator[str]:
    for name, value in scheduler_args.items():
        if name == "cycle_limit" and not (isinstance(value, int) and value >= 1):
            yield f"Expected cycle_limit to be an integer of at least 1, but got {value!r}. 1 is one cycle."
        elif name in _NUMBERS and not isinstance(value, Real) and value != TIMM_ARGUMENTS[name]:
            yield f"Expected {name} to be a number, but got {value!r}. timm's default is {TIMM_ARGUMENTS[name]!r}."
        elif name == "decay_milestones" and not _are_numbers(value):
            yield f"Expected decay_milestones to be a list of epochs, but got {value!r}. Pass one such as [30, 60]."
        elif name in _POSITIVE and value is not None and value <= 0:
            yield f"Expected {name} to be positive, but got {value!r}. timm's default is {TIMM_ARGUMENTS[name]!r}."


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, Real) for each in value)


def steps_on_epochs(scheduler_args: Mapping[str, Any]) -> bool:
    """Whether the schedule steps once an epoch."""
    return bool(scheduler_args.get("step_on_epochs", True))

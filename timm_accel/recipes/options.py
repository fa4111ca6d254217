"""The options of a recipe: conditions on their values, messages about wrong values, and their defaults."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from timm_accel.messages import nearest

Metadata = dict[str, "Condition"]


@dataclass(frozen=True)
class Condition:
    """A condition on the values of an option.

    Args:
        words: The condition in words, after "to be".
        holds: Whether a value of the option's type, other than None, meets it. It may raise a `ValueError` with a
            complete message.
        names: Returns the known names, for an option that is a name: the message suggests the nearest of them.
    """

    words: str
    holds: Callable[[Any], bool]
    names: Callable[[], Sequence[str]]


def must_be(words: str, holds: Callable[[Any], bool], names: Callable[[], Sequence[str]] = tuple) -> Metadata:
    """Return the ``metadata`` of a field of the recipe; the arguments are those of `Condition`.

    Args:
        words: The condition in words.
        holds: Whether a value meets it.
        names: Returns the known names.
    """
    return {"condition": Condition(words, holds, names)}


def must_pass(check: Callable[[Any], object], words: str) -> Metadata:
    """Return the ``metadata`` of a field with an existing check.

    Args:
        check: Raises a `ValueError` with a message for a wrong value.
        words: The condition in words, for a value of another type.
    """

    def passes(value: Any) -> bool:
        check(value)
        return True

    return must_be(words, passes)


def must_be_one_of(names: Sequence[str], words: str | None = None) -> Metadata:
    """Return the ``metadata`` of a field that is one of some names.

    Args:
        names: The names.
        words: A description of them; None to list them.
    """
    return must_be(words or f"one of {', '.join(names)}", lambda value: value in names, lambda: names)


INTEGER_FROM_0 = must_be("an integer of at least 0", lambda number: number >= 0)
INTEGER_FROM_1 = must_be("an integer of at least 1", lambda number: number >= 1)
AT_LEAST_0 = must_be("at least 0", lambda number: number >= 0)
AUTO_OR_INTEGER_FROM_1 = must_be("auto or an integer of at least 1", lambda number: number == "auto" or number >= 1)
POSITIVE = must_be("positive", lambda number: number > 0)
BETWEEN_0_AND_1 = must_be("between 0 and 1", lambda number: 0 <= number <= 1)
ABOVE_0_UP_TO_1 = must_be("above 0 and up to 1", lambda number: 0 < number <= 1)
FROM_0_BELOW_1 = must_be("from 0 to below 1", lambda number: 0 <= number < 1)
KEYWORDS = must_be("values by the names of arguments", lambda values: True)
CLASS_WEIGHTS = must_be(
    "auto, positive numbers, or positive numbers by the names of classes",
    lambda weights: weights == "auto" or (len(weights) > 0 and all(weight > 0 for weight in _numbers(weights))),
)


def _numbers(weights: Any) -> Any:
    return weights.values() if isinstance(weights, dict) else weights


def default_of(owner: Callable[..., Any], option: str) -> Any:
    """Return the default of an option where it is used, so that a recipe does not repeat it.

    Args:
        owner: A mixin, a callback or a builder.
        option: The name of the option there.
    """
    function = owner.__init__ if isinstance(owner, type) else owner  # type: ignore[misc]
    return inspect.signature(function).parameters[option].default


def fault_of(option: "Field[Any]", value: Any) -> str | None:
    """Return a message about a wrong value of an option, or None for a valid value.

    Args:
        option: The field of the recipe.
        value: Its value.
    """
    by_type = must_be(in_words(option.type), lambda value: True, lambda: _choices(option.type))
    condition: Condition = (option.metadata or by_type)["condition"]
    try:
        if fits(value, option.type) and (value is None or condition.holds(value)):
            return None
    except ValueError as error:
        return str(error)
    names = condition.names()
    remedy = nearest(value, names) if names else f"The default is {option.default!r}."
    return f"Expected {option.name} to be {condition.words}, but got {value!r}. {remedy}"


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type: a class, or a type that the annotations of a recipe use.

    Integers count as floats, booleans do not count as numbers, and a tuple may replace a list.

    Args:
        value: The value.
        kind: The type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(name, inner[0]) and fits(each, inner[1]) for name, each in value.items()
        )
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(each, inner[0]) for each in value)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


def tuple_for_list(value: Any, kind: Any) -> Any:
    """Return a tuple for a list if only a tuple is of the type, since YAML has no tuples; otherwise the value.

    Args:
        value: The value.
        kind: The type.
    """
    return tuple(value) if isinstance(value, list) and not fits(value, kind) and fits(tuple(value), kind) else value


def in_words(kind: Any) -> str:
    """Return the choices of a `Literal` and the other types of its union but None; any other type as annotated."""
    if not (choices := _choices(kind)):
        return inspect.formatannotation(kind)
    others = [each for each in get_args(kind) if each in (bool, int, float, str)]
    many = [inspect.formatannotation(each) for each in get_args(kind) if get_origin(each) in (list, dict)]
    return " or ".join([*(each.__name__ for each in others), f"one of {', '.join([*choices, *many])}"])


def _choices(kind: Any) -> list[str]:
    return [word for each in (kind, *get_args(kind)) if get_origin(each) is Literal for word in get_args(each)]

"""What a trainer shows: the options of all its mixins in one signature, and attributes that its run tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from torch.utils.data import DataLoader

from timm_accel.messages import nearest
from timm_accel.training.run import Run
from timm_accel.upstream import Trainer

if TYPE_CHECKING:
    from timm_accel.training.trainer import LoopTrainer

T = TypeVar("T")
P = ParamSpec("P")


def merged_signature(kind: type, last: type) -> Signature:
    """Return what a trainer's class can be called with: the parameters of every ``__init__`` that passes on the rest.

    An ``__init__`` without ``**kwargs`` lists all of its options itself, and ends the search.

    Args:
        kind: The class.
        last: The class in its MRO whose ``__init__`` passes nothing on.
    """
    found: dict[str, Parameter] = {}
    takes_positional = True
    for each in kind.__mro__[: kind.__mro__.index(last) + 1]:
        if "__init__" not in vars(each):
            continue
        own = list(signature(vars(each)["__init__"]).parameters.values())[1:]
        kinds = {parameter.kind for parameter in own}
        for parameter in own:
            if parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                shown = parameter if takes_positional else parameter.replace(kind=Parameter.KEYWORD_ONLY)
                found.setdefault(parameter.name, shown)
        takes_positional &= Parameter.VAR_POSITIONAL in kinds
        if Parameter.VAR_KEYWORD not in kinds:
            break
    return Signature(_in_order(list(found.values())))


def _in_order(parameters: list[Parameter]) -> list[Parameter]:
    """Put the positional ones first; one without a default that follows one with a default becomes keyword-only."""
    positional: list[Parameter] = []
    keyword = [each for each in parameters if each.kind is Parameter.KEYWORD_ONLY]
    for each in parameters:
        if each.kind is not Parameter.KEYWORD_ONLY:
            follows_default = any(before.default is not Parameter.empty for before in positional)
            if each.default is Parameter.empty and follows_default:
                keyword.append(each.replace(kind=Parameter.KEYWORD_ONLY))
            else:
                positional.append(each)
    return [*positional, *keyword]


def refuse_unknown_options(kind: type, unknown: Iterable[str]) -> None:
    """Raise a `TypeError` that names the nearest option for the first one that the trainer does not know."""
    for name in unknown:
        options = list(signature(kind).parameters)
        raise TypeError(f"Expected options of {kind.__name__}, but got {name!r}. {nearest(name, options)}")


def names_unknown_options(method: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
    """Let a method of a trainer say where an unknown option belongs, or which one is meant, before anything else.

    Args:
        method: It takes what upstream's method of the same name takes, and perhaps more.
    """
    name = method.__name__
    known = {**signature(getattr(Trainer, name)).parameters, **signature(method).parameters}
    options = [
        each.name for each in known.values() if each.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    ]
    loaders = " or ".join(option for option in options if option.endswith("dataloader_kwargs"))

    @wraps(method)
    def checked(trainer: T, *args: P.args, **kwargs: P.kwargs) -> None:
        for given in kwargs:
            if given in options:
                continue
            remedy = nearest(given, options[1:])
            if given in signature(type(trainer)).parameters:
                remedy = f"It is an option of {type(trainer).__name__}(). Pass it there."
            elif given in signature(DataLoader).parameters and "Did you mean" not in remedy:
                remedy = f"It is an option of the loader. Pass it as {{{given!r}: …}} in {loaders}."
            raise TypeError(f"Expected options of {name}(), but got {given!r}. {remedy}")
        method(trainer, *args, **kwargs)

    return checked


class FromRun:
    """An attribute that a trainer reads from its run, unless a subclass or the user has set one of that name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.__doc__ = name, getattr(getattr(Run, name, None), "__doc__", None)

    def __get__(self, trainer: LoopTrainer | None, owner: type | None = None) -> Any:
        return self if trainer is None else getattr(trainer.current_run(), self.name)

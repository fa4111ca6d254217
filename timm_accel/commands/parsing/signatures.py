"""The typed arguments of a command's function, by jsonargparse, and its options as plain data."""

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse, parse_from_object
from jsonargparse import ArgumentError, ArgumentParser

from timm_accel.commands.parsing.options import CommandOptions, Option
from timm_accel.commands.parsing.words import Values

Function = Callable[..., Any]


def typed_arguments(function: Function, values: Values) -> dict[str, Any]:
    """Return the arguments of a function that were given, each of its type.

    An argument that is a dataclass is the `Recipe`: its options are those of the command.

    Args:
        function: The function of a command.
        values: The options and their words, as `split_words` returns them.

    Raises:
        UsageError: A word is not of the option's type.
        ValueError: The recipe has faults.
    """
    kinds = get_type_hints(function)
    kinds.pop("return", None)
    own = {name: kind for name, kind in kinds.items() if not is_dataclass(kind)}
    arguments = _read(own, [(name, given) for name, given in values if name in own])
    for name in kinds.keys() - own.keys():
        from timm_accel.commands.parsing.recipe_options import read_recipe

        arguments[name] = read_recipe([(name, given) for name, given in values if name not in own])
    return arguments


def _read(kinds: dict[str, Any], values: Values) -> dict[str, Any]:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind)
    try:
        return dict(parser.parse_args(option_words(kinds, values), defaults=False).as_dict())
    except ArgumentError as error:
        from timm_accel.recipes import refuse_arguments

        refuse_arguments(error, kinds)


def option_words(kinds: dict[str, Any], values: Values) -> list[str]:
    """Return one word ``--name=value`` for each option, for jsonargparse; several words become a list.

    Args:
        kinds: The types by name.
        values: The options and their words.
    """
    return [f"--{name}={_one_word(kinds.get(name), given)}" for name, given in values]


def _one_word(kind: Any, given: list[str]) -> str:
    only_list = all(get_origin(each) in (list, tuple) for each in _alternatives(kind))
    is_yaml = given[0] == "null" or (given[0].startswith("[") and given[0].endswith("]"))
    if len(given) > 1 or (only_list and not is_yaml):
        return json.dumps(given)
    return given[0]


def _alternatives(kind: Any) -> list[Any]:
    """Return the types of a union but None, or the one type."""
    union = get_origin(kind) in (Union, UnionType)
    return [each for each in (get_args(kind) if union else (kind,)) if each is not NoneType]


def recorded(function: Function) -> CommandOptions:
    """Return what the help of a command shows of its function, from its signature and docstring.

    Args:
        function: The function of a command.
    """
    docstring = parse(inspect.getdoc(function) or "")
    about = {each.arg_name: each.description or "" for each in docstring.params}
    hints, options = get_type_hints(function), list[Option]()
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(kind := hints[name]):
            options += _recipe_options(kind)
        else:
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            options.append(_option(name, kind, parameter.default, about.get(name, ""), positional))
    return CommandOptions(_one_line(docstring.short_description or ""), tuple(options))


def _recipe_options(kind: Any) -> Iterator[Option]:
    from timm_accel.commands.parsing.recipe_options import CONFIG_OPTIONS

    yield from CONFIG_OPTIONS
    about = {each.arg_name: each.description or "" for each in parse_from_object(kind).params}
    for field in fields(kind):
        yield _option(field.name, field.type, field.default, about[field.name], False)


def _option(name: str, kind: Any, default: Any, about: str, positional: bool) -> Option:
    kinds = _alternatives(kind)
    return Option(
        name=name,
        kind=_in_words(kind),
        default=None if default in (inspect.Parameter.empty, MISSING) else _written(default),
        help=_one_line(about),
        choices=tuple(str(word) for each in kinds if get_origin(each) is Literal for word in get_args(each)),
        flag=bool in kinds,
        many=any(get_origin(each) in (list, tuple) for each in kinds),
        positional=positional,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _written(default: Any) -> str:
    return default if isinstance(default, str) else json.dumps(default, default=str)


def _in_words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(_in_words, get_args(kind)))
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return "null" if kind is NoneType else inspect.formatannotation(kind).replace("pathlib.", "").replace("typing.", "")

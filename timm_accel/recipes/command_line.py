"""Messages of a command line about a faulty recipe."""

import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import yaml

from timm_accel.messages import UsageError, nearest, nearest_path, printable
from timm_accel.recipes.options import in_words
from timm_accel.recipes.recipe import Recipe

_KINDS = {type(None): "an empty file", str: "a text", list: "a list", dict: "a name that is none of an option"}


def refuse_arguments(error: Exception, kinds: Mapping[str, Any] = Recipe.__annotations__) -> NoReturn:
    """Raise a `UsageError` for what jsonargparse says of the arguments, with the nearest name for an unknown option.

    Nothing of a file that holds no options is repeated, since --config may name any file.

    Args:
        error: What jsonargparse raised.
        kinds: The types of the options by name.
    """
    raise UsageError(printable(_explain(str(error), kinds))) from None


def _explain(message: str, kinds: Mapping[str, Any]) -> str:
    if unknown := re.search(r"(?i)unrecognized arguments: -*(\w+)|Option '(\w+)' is not accepted", message):
        name = unknown[1] or unknown[2]
        return f"Expected an option, but got {name!r}. {nearest(name, [*kinds, 'config', 'recipe'])}"
    if got := _not_options(message):
        return f"Expected the file of --config to be YAML of name: value, but got {got}. --help lists all options."
    if absent := re.search(r"Parser key \"config\": (?:File|Path) (.*): '(.*)'$", message):
        path = os.path.relpath(absent[2]) if absent[2].startswith(f"{os.getcwd()}{os.sep}") else absent[2]
        remedy = nearest_path(path, "Correct the path.")
        return f"Expected --config to be a YAML file, but got {path!r}, which {absent[1]}. {remedy}"
    wrong = re.search(r'Parser key "(\w+)".*(?:Got|Given) value: (.+)', message, re.DOTALL)
    if wrong and wrong[1] in kinds:
        kind = in_words(kinds[wrong[1]])
        remedy = "--help lists all options."
        if wrong[2] in ("True", "False"):  # no text on a command line is one
            remedy = "Put yes, no, on and off in quotes: a bare one is a boolean in YAML."
        return f"Expected {wrong[1]} to be {kind}, but got {wrong[2]!r}. {remedy}"
    return f"Expected arguments as --help lists them, but got {' '.join(message.split())!r}. Correct them."


def _not_options(message: str) -> str | None:
    """Return what the file of --config holds instead of options; None where the message is about something else."""
    if undecodable := re.search(r".*codec can't decode.*", message):
        return undecodable[0]
    if "Problems parsing config" in message:
        place = re.search(r"line \d+, column \d+", message)
        return f"another file, by its {place[0]}" if place else "another file"
    if re.search(r"Option '.*' is not accepted", message, re.DOTALL):
        return "a name that is none of an option"
    found = re.search(r"Unexpected config:? ?(.*)", message, re.DOTALL)
    return _KINDS.get(type(yaml.safe_load(found[1])), "a number") if found else None

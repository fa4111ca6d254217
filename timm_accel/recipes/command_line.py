"""What a command line says of a recipe that cannot be."""

import re
from inspect import formatannotation
from typing import Any, Literal, get_args, get_origin

from timm_accel.messages import nearest
from timm_accel.recipes.recipe import Recipe


def explain(message: str) -> str:
    """Put jsonargparse's message about an option into our words, with the nearest name to an unknown one."""
    if unknown := re.search(r"(?i)unrecognized arguments: -*(\w+)|Option '(\w+)' is not accepted", message):
        name = unknown[1] or unknown[2]
        return f"Expected an option, but got {name!r}. {nearest(name, [*Recipe.__annotations__, 'config', 'recipe'])}"
    wrong = re.search(r'Parser key "(\w+)".*(?:Got|Given) value: (.+)', message, re.DOTALL)
    if wrong and wrong[1] in Recipe.__annotations__:
        kind = _in_words(Recipe.__annotations__[wrong[1]])
        return f"Expected {wrong[1]} to be {kind}, but got {wrong[2]!r}. --help lists all options."
    return f"{' '.join(message.split())}. --help lists all options."


def _in_words(annotation: Any) -> str:
    """Return the choices of a `Literal`, with the kinds beside it but None; any other annotation as it is written."""
    kinds = [annotation, *get_args(annotation)]
    if not any(get_origin(kind) is Literal for kind in kinds):
        return formatannotation(annotation)
    others = [formatannotation(kind) for kind in kinds[1:] if get_origin(kind) in (list, dict)]
    choices = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return f"one of {', '.join([*choices, *others])}"

"""Messages of a command line about a faulty recipe."""

import re
from typing import NoReturn

from timm_accel.messages import nearest
from timm_accel.recipes.options import in_words
from timm_accel.recipes.recipe import Recipe


def refuse_arguments(error: Exception) -> NoReturn:
    """Raise a `ValueError` for what jsonargparse says of the arguments, with the nearest name for an unknown option."""
    raise ValueError(_explain(str(error))) from error


def _explain(message: str) -> str:
    if unknown := re.search(r"(?i)unrecognized arguments: -*(\w+)|Option '(\w+)' is not accepted", message):
        name = unknown[1] or unknown[2]
        return f"Expected an option, but got {name!r}. {nearest(name, [*Recipe.__annotations__, 'config', 'recipe'])}"
    if found := re.search(r"Unexpected config:? ?(.*)|(.*codec can't decode.*)", message, re.DOTALL):
        got = " ".join((found[1] or found[2] or "").split())[:200] or "an empty file"
        return f"Expected the file of --config to be YAML of name: value, but got {got}. --help lists all options."
    wrong = re.search(r'Parser key "(\w+)".*(?:Got|Given) value: (.+)', message, re.DOTALL)
    if wrong and wrong[1] in Recipe.__annotations__:
        kind = in_words(Recipe.__annotations__[wrong[1]])
        return f"Expected {wrong[1]} to be {kind}, but got {wrong[2]!r}. --help lists all options."
    return f"{' '.join(message.split())}. --help lists all options."

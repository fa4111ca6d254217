"""The options of each command as plain data, recorded from the signatures in ``options.json``.

They are read without torch and timm, which the signatures import.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of a command, or a word that it takes by position.

    Args:
        name: Its name.
        kind: Its type in words.
        default: Its default in words; None for an argument that must be given.
        help: What it does.
        choices: All values that it takes, where they are few.
        flag: Whether it alone means true.
        many: Whether it takes several words.
        positional: Whether it is given without its name.
    """

    name: str
    kind: str
    default: str | None
    help: str
    choices: tuple[str, ...] = ()
    flag: bool = False
    many: bool = False
    positional: bool = False


@dataclass(frozen=True)
class CommandOptions:
    """What a command does, and its options.

    Args:
        about: A sentence.
        options: The options, in the order of the help.
    """

    about: str
    options: tuple[Option, ...]


RECORD = files("timm_accel.commands") / "options.json"


@cache
def _record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def options_of_command(name: str) -> CommandOptions:
    """Return what is recorded of a command.

    Args:
        name: Its name on the command line.
    """
    found = _record()[name]
    options = [Option(**{**option, "choices": tuple(option.get("choices", ()))}) for option in found["options"]]
    return CommandOptions(found["about"], tuple(options))

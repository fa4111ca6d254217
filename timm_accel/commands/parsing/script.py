"""The command line of a script: its options are the arguments of a function, read as those of a command."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm_accel.commands.parsing.help import plain_parser
from timm_accel.commands.parsing.signatures import recorded, typed_arguments
from timm_accel.commands.parsing.words import split_words


def read_options(function: Callable[..., Any], words: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the arguments that a command line gives to a function, each as an option by its name.

    Its help is the docstring of the function. Arguments that are not given are left out.

    Args:
        function: The function, with types and a docstring.
        words: The words of the command line; None for those of this process.

    Raises:
        SystemExit: With --help, when the help is printed.
        UsageError: An option is unknown, lacks its value, or is not of its type.
    """
    words = sys.argv[1:] if words is None else words
    command = recorded(function)
    command = replace(command, options=tuple(replace(option, positional=False) for option in command.options))
    if {"-h", "--help"} & set(words):
        plain_parser(Path(sys.argv[0]).name, command).print_help()
        sys.exit()
    return typed_arguments(function, split_words(words, command.options))

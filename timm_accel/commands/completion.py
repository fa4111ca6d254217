"""Print what a shell needs to complete commands and options."""

from argparse import SUPPRESS, ArgumentParser
from typing import Literal

import shtab

from timm_accel.commands.main import COMMANDS
from timm_accel.commands.parsing import options_of_command, plain_parser


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script that completes commands and options, for the start-up file of a shell.

    Args:
        shell: The shell.
    """
    print(shtab.complete(_parser_of_all(), shell))


def _parser_of_all() -> ArgumentParser:
    parser = ArgumentParser(prog="timm-accel", description=SUPPRESS)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    group = parser.add_subparsers()
    for name in COMMANDS:
        command = options_of_command(name)
        plain = plain_parser(f"timm-accel {name}", command)
        options = {option.name: option for option in command.options}
        for action in plain._actions:
            if (option := options.get(action.dest)) is None:
                continue  # --help
            action.choices = ("true", "false") if option.flag else option.choices or None
            if action.choices is None and "str" in option.kind:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        group.add_parser(name, help=command.about, parents=[plain], add_help=False)
    return parser

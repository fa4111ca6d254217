"""The help of a command from its recorded options, at the width of the terminal, with argparse."""

from argparse import ArgumentParser
from collections.abc import Mapping
from re import match
from shutil import get_terminal_size
from textwrap import wrap

from timm_accel.commands.parsing.options import CommandOptions, Option


def plain_parser(program: str, command: CommandOptions) -> ArgumentParser:
    """Return a parser that shows help and completes words. It reads no values.

    Args:
        program: What is typed before its options.
        command: What is recorded of it.
    """
    positional = " ".join(_usage(option) for option in command.options if option.positional)
    parts = [part for part in (program, positional, "[OPTIONS]") if part]
    usage = "\n".join(wrap(" ".join(parts), get_terminal_size().columns - len("usage: ")))
    parser = ArgumentParser(prog=program, usage=usage, description=command.about)
    for option in command.options:
        kind = ", ".join(each.strip() for each in option.kind.split(","))
        about = f"{option.help} (type: {kind}{_default(option)})".replace("%", "%%")
        flags = [option.name if option.positional else f"--{option.name}"]
        nargs = "+" if option.many else "?" if option.flag else None
        parser.add_argument(*flags, help=about, metavar=_metavar(option), nargs=nargs)
    return parser


def _usage(option: Option) -> str:
    word = f"{_metavar(option)} [{_metavar(option)} ...]" if option.many else _metavar(option)
    return word if option.default is None else f"[{word}]"


def _default(option: Option) -> str:
    if option.default is not None:
        return f", default: {option.default}"
    return "" if option.positional else ", required"


def _metavar(option: Option) -> str:
    choices = "{" + ",".join(option.choices) + "}"
    if option.kind.startswith("{") and len(f"  --{option.name} {choices}") <= get_terminal_size().columns:
        return choices
    if option.positional:
        return option.name.upper()
    kind = option.kind.removeprefix("list[").removeprefix("tuple[")
    return (match(r"\w+", kind) or [option.name])[0].upper()


def help_of(name: str, command: CommandOptions) -> str:
    """Return the help of a command.

    Args:
        name: Its name.
        command: What is recorded of it.
    """
    return plain_parser(f"timm-accel {name}", command).format_help()


def overview(commands: Mapping[str, CommandOptions]) -> str:
    """Return the help of ``timm-accel``: each command with its sentence.

    Args:
        commands: The commands by name.
    """
    width = get_terminal_size().columns
    column = max(map(len, commands), default=0) + 4
    lines = [
        "usage: timm-accel COMMAND [OPTIONS]",
        "",
        *wrap("Train, evaluate and use timm's image classifiers.", width),
        "",
    ]
    for name, command in commands.items():
        start = f"  {name}".ljust(column)
        lines += wrap(
            command.about, width, initial_indent=start, subsequent_indent=" " * column, break_on_hyphens=False
        )
    return "\n".join([*lines, "", *wrap("timm-accel COMMAND --help lists the options of a command.", width)])

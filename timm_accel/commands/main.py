"""Find the command, show its help or run it, and turn its errors into sentences and exit codes.

Exit codes: 0 done; 1 refused or unreadable inputs; 2 a command line that cannot be read; 75 to be resumed, from the
trainer.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import timm_accel
from timm_accel.commands.output.logged import show_log
from timm_accel.commands.parsing import help_of, options_of_command, overview, split_words
from timm_accel.messages import UsageError, nearest, report_error

COMMANDS = (
    "train",
    "predict",
    "evaluate",
    "export",
    "demo",
    "audit",
    "average",
    "find-lr",
    "preview-lr",
    "models",
    "report",
    "recipes",
    "init",
    "completion",
)

TOGETHER = ("train", "demo", "find-lr", "predict", "evaluate")
"""The commands on which all processes of a launch work; rank 0 works alone on the others."""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code.

    Args:
        words: The words of the command line after ``timm-accel``; None for those of this process.
    """
    words = list(sys.argv[1:] if words is None else words)
    name = "timm-accel"
    show_log()
    try:
        if words and not words[0].startswith("-"):
            name = f"timm-accel {words[0]}"
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (refused := report_error(error, name)) is None:
            raise  # not a user error
        return refused


def _run(words: list[str]) -> int:
    known = {name: options_of_command(name) for name in COMMANDS}
    if not words:
        print(overview(known), file=sys.stderr)
        return 2
    if words[0] in ("-h", "--help", "help"):
        print(overview(known))
        return 0
    if words[0] == "--version":
        print(f"timm_accel {timm_accel.__version__}")
        return 0
    name, rest = words[0].replace("_", "-"), words[1:]
    if name not in known:
        raise UsageError(f"Expected a command, but got {words[0]!r}. {nearest(name, known)} --help lists all of them.")
    if {"-h", "--help"} & set(rest):
        print(help_of(name, known[name]), end="")
        return 0
    values = split_words(rest, known[name].options)
    if name not in TOGETHER and "RANK" in os.environ and not _works_alone():
        return 0
    module = name.replace("-", "_")
    function = getattr(import_module(f"timm_accel.commands.{module}"), module)
    from timm_accel.commands.parsing.signatures import typed_arguments

    return function(**typed_arguments(function, values)) or 0


def _works_alone() -> bool:
    """Leave the launch, and return whether this process is its rank 0."""
    from timm_accel.distributed.shares import share_of_process

    share = share_of_process(True)
    share.leave()
    return share.is_first

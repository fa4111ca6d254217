"""Parts of messages: similar names, another library's error in one line, the extra to install, text for a terminal or a
notebook.
"""

import dis
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from html import escape
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from timm_accel.terminal import print_fitted

_PACKAGE = __name__.split(".")[0]
GRACE_SECONDS = 30.0
"""How long a rank other than the first waits before it reports an error."""
UNPRINTABLE = r"\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""Characters, as in a regular expression, that control a terminal, but newlines, and those that UTF-8 cannot hold."""
_UNPRINTABLE = re.compile(f"[{UNPRINTABLE}]")
_RAISED_IN_WORKER = re.compile(  # the last frame, its lines, marks below them (Python 3.13 shows more), and the error
    rf'File "[^"]*[/\\]{_PACKAGE}[/\\][^"]*", line \d+, in [^\n]+\n +raise [^\n]*\n(?: [^\n]*\n)*[\w.]+: ((?:.|\n)*)$'
)


class UsageError(ValueError):
    """A command line that cannot be read; the exit code is 2."""


def printable(text: str) -> str:
    r"""Return text for a terminal or a log: newlines stay, other control characters become ``\u001b``.

    >>> printable("cat\x1b[2J.png")
    'cat\\u001b[2J.png'
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def nearest(name: Any, known: Iterable[str], count: int = 3) -> str:
    """Return ``"Did you mean 'a' or 'b'?"``, or the first few known names when none is similar."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=count, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    shown = ", ".join(repr(option) for option in known[:10])
    return f"Known names: {shown}{', …' if len(known) > 10 else ''}."


def nearest_path(path: str | os.PathLike[str], otherwise: str) -> str:
    """Return ``"Did you mean 'runs/first'?"`` with the similar names beside a path that does not exist.

    Args:
        path: A path; the first folder of it that does not exist is compared with what is there instead.
        otherwise: The remedy if no name is similar, or if the path exists.
    """
    missing = Path(path)
    while not os.path.lexists(missing.parent):
        missing = missing.parent
    try:
        beside = [] if os.path.lexists(missing) else os.listdir(missing.parent)[:10_000]
    except (OSError, ValueError):
        return otherwise
    rest = Path(path).relative_to(missing)
    close = [missing.parent / name / rest for name in get_close_matches(missing.name, sorted(beside), cutoff=0.6)]
    return f"Did you mean {' or '.join(repr(str(each)) for each in close)}?" if close else otherwise


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """Return the message of another library's error in one line, or its class when the message is empty.

    torch's advice to load a file by running its code is left out.

    >>> one_line(ValueError("sizes differ:\\n  3 and 4")), one_line(KeyError())
    ('sizes differ: 3 and 4', 'KeyError')

    Args:
        error: The error.
        limit: The largest number of characters; None for all of them.
    """
    return _quoted(str(error), limit) or type(error).__name__


def quoted_sentence(error: BaseException, limit: int | None = 200) -> str:
    """Return `one_line` with an end, so that a sentence can follow: a full stop, or an ellipsis where it is cut.

    >>> quoted_sentence(ValueError("sizes differ")), quoted_sentence(ValueError("sizes differ"), 5)
    ('sizes differ.', 'sizes…')

    Args:
        error: The error.
        limit: The largest number of characters before the ellipsis; None for all of them.
    """
    text = one_line(error, None)
    if limit is not None and len(text) > limit:
        return f"{text[:limit].rstrip(' .')}…"
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _quoted(text: str, limit: int | None) -> str:
    text = printable(" ".join(text.split()))
    if "weights_only" in text:  # torch 2.14: the cause, amid advice to pass weights_only=False
        text = text.rpartition("WeightsUnpickler error: ")[2].partition(". ")[0]
    return text[:limit]


def shortened(value: Any, limit: int = 200) -> str:
    """Return a value as code in one line, and no more than its first characters.

    >>> shortened({"a": [1, 2]}), shortened("cats and dogs", 5)
    ("{'a': [1, 2]}", "'cats…")
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: ``"1 file"``, ``"2,000 classes"``."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith(('s', 'tch')) else 's'}"


def html_table(rows: Iterable[Sequence[str]], heads: int = 1) -> str:
    """Return a table for a notebook; its first rows are heads, its first column holds names, and all text is escaped.

    >>> html_table([["<b>"]], heads=0)
    '<table><tr><td style="text-align: left">&lt;b&gt;</td></tr></table>'

    Args:
        rows: The text of each cell.
        heads: The number of rows that name the columns.
    """
    tags = chain(repeat("th", heads), repeat("td"))
    lines = (f"<tr>{''.join(_html_cells(tag, row))}</tr>" for tag, row in zip(tags, rows, strict=False))
    return f"<table>{''.join(lines)}</table>"


def _html_cells(tag: str, row: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(row):
        side = "left" if number == 0 else "right"  # as printed, whatever the notebook does
        yield f'<{tag} style="text-align: {side}">{escape(printable(text))}</{tag}>'


def html_lines(tag: str, texts: Iterable[str]) -> str:
    """Return an HTML element for each text, which is escaped."""
    return "".join(f"<{tag}>{escape(printable(text))}</{tag}>" for text in texts)


def html_block(*parts: str) -> str:
    """Return HTML that scrolls where the page is narrower."""
    return f'<div style="overflow-x: auto; max-width: 100%">{"".join(parts)}</div>'


def own_sentence(error: BaseException) -> str | None:
    """Return the sentence of an error that a ``raise`` of this package raised, for a user; None for any other error.

    Args:
        error: The error, as it was caught; it may come from a loader worker.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == _PACKAGE:
        raised = trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
        sentence = str(error) if raised else None
    else:  # torch puts the traceback of a loader worker into the message
        worker = _RAISED_IN_WORKER.findall(str(error).rpartition("Traceback (most recent call last):")[2])
        sentence = worker[-1] if worker else None
    if sentence is None:
        return None
    return printable(" ".join([" ".join(sentence.split()), *getattr(error, "__notes__", [])]))


def report_error(error: BaseException, program: str) -> int | None:
    """Print the sentence of an error that this package raised, and return the exit code; None for any other error.

    A rank that is not the first of its machine waits. If all ranks fail alike, the launcher ends the others as soon as
    the first has ended, so that the sentence comes once. If only another rank fails, the first does not end, and the
    sentence comes after the wait.

    Args:
        error: The error, as it was caught.
        program: The name of the program, which stands before the sentence.

    Returns:
        2 for a command line that cannot be read, 1 for anything else.
    """
    if (sentence := own_sentence(error)) is None:
        return None
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(GRACE_SECONDS)
    print_fitted(f"{program}: {sentence}", sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


@contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """End a program with the sentence of an error that this package raised, without a traceback.

    Any other error is raised as it is. `report_error` has the exit codes.

    Args:
        program: The name of the program, which stands before the sentence.
    """
    try:
        yield
    except Exception as error:
        if (code := report_error(error, program)) is None:
            raise  # not a user error
        sys.exit(code)


def root_cause(error: BaseException) -> str:
    """Return the class of an error's root cause and the first line of its message: ``TypeError: sizes differ``."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    first = _quoted(text if "weights_only" in text else text.partition("\n")[0], 200).strip().rstrip(".:")
    return f"{type(error).__name__}: {first or 'nothing said'}"


def missing_extra(extra: str, purpose: str, module: str | None, otherwise: str = "") -> ModuleNotFoundError:
    """Return the error that names the extra to install.

    Args:
        extra: One of timm_accel's extras.
        purpose: What needs it.
        module: The module that is missing.
        otherwise: Another remedy, such as ``", or save it as a CSV"``.
    """
    return ModuleNotFoundError(
        f"Expected the extra {extra!r} to be installed for {purpose}, but {module!r} is missing. "
        f'Run pip install "timm_accel[{extra}]"{otherwise}.',
        name=module,
    )

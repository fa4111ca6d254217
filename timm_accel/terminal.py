"""Where a program prints, and text for a terminal: its width, text that is made to fit, numbers in words."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from math import ceil
from typing import Any
from unicodedata import category, east_asian_width, normalize

from tqdm import tqdm

_BARS = "▁▂▃▄▅▆▇█"
_PIECE = re.compile(  # what a line does not break: a command, a quoted path with spaces, any other word
    r"""(?:timm-accel\ (?![\w-]+:\ ).*|pip\ install\ |(?<!\w)'[^'\n]*'|(?<!\w)"[^"\n]*"|\S)+""", re.VERBOSE
)
_INDENT = "  "
_NO_WIDTH = ("Mn", "Me", "Cf")  # combining marks and joiners


def screen_width() -> int:
    """Return the columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns


def shows_bars() -> bool:
    """Return whether progress bars go to a terminal, and not into a log."""
    return is_terminal(sys.stderr)


def text_width(text: str) -> int:
    """Return the columns that text takes: a Chinese, Japanese or Korean letter takes two, a combining mark none.

    >>> text_width("cat"), text_width("猫"), text_width("e\u0301")
    (3, 2, 1)
    """
    return sum(map(_letter_width, normalize("NFC", text)))


def _letter_width(letter: str) -> int:
    if category(letter) in _NO_WIDTH:
        return 0
    return 2 if east_asian_width(letter) in "WF" else 1


def padded(text: str, width: int, right: bool = False) -> str:
    """Return text with spaces after it, or before it to the right, up to a number of columns."""
    spaces = " " * (width - text_width(text))
    return spaces + text if right else text + spaces


def shortened(text: str, width: int) -> str:
    """Return text of at most so many columns, without its middle; of a path the name of the file stays, if it fits.

    >>> shortened("photos/2026/summer/beach/cat.jpg", 20)
    'photos/2026…/cat.jpg'
    """
    if text_width(text) <= width:
        return text
    room, name = width - 1, text_width(text.replace("\\", "/").rpartition("/")[2]) + 1
    text = normalize("NFC", text)
    end = ""
    for letter in reversed(text):
        if text_width(letter + end) > (name if name <= room else room // 2):
            break
        end = letter + end
    start = ""
    for letter in text:
        if text_width(start + letter) + text_width(end) > room:
            break
        start += letter
    return f"{start}…{end}"


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return the lines of text; what one copies is not divided: a word, a path in quotation marks, a command.

    >>> wrapped("To resume: timm-accel train --resume auto", 20)
    ['To resume:', 'timm-accel train --resume auto']

    Args:
        text: Words with spaces between them; a command ends with its line.
        width: The columns of a line.
        indent: What all lines but the first begin with.
    """
    lines: list[str] = []
    for word in _PIECE.findall(text):
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"{indent}{word}" if lines else word)
    return lines


def fitted(text: str, stream: Any) -> str:
    """Return text as a stream gets it: in a terminal, lines that are too long for it continue below, indented.

    A file and a notebook get the text as it is. A line that begins with a space stays: it may be a command.

    Args:
        text: One or more lines.
        stream: Where it is written.
    """
    if not is_terminal(stream):
        return text
    width = width_of(stream)
    lines = text.split("\n")
    fits = (text_width(line) <= width or line.startswith(" ") for line in lines)
    return "\n".join(
        line if each else "\n".join(wrapped(line, width, _INDENT)) for line, each in zip(lines, fits, strict=True)
    )


def print_fitted(text: str, stream: Any = None) -> None:
    """Print text to stdout, or to another stream, at the width of a terminal."""
    stream = sys.stdout if stream is None else stream
    print(fitted(text, stream), file=stream, flush=True)


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as a line of bars from the smallest to the largest value.

    >>> sparkline([0, 1, 2, 3, 2, 1, 0], 7)
    '▁▃▆█▆▃▁'

    Args:
        values: Finite values.
        width: The largest number of columns; of more values than columns, each column shows the first that is its.
    """
    columns = min(width, len(values))
    shown = [values[ceil(column * len(values) / columns)] for column in range(columns)]
    low, span = min(shown), max(shown) - min(shown)
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1)) if span else 0] for value in shown)


def is_terminal(stream: Any) -> bool:
    """Whether a stream, or None, is a terminal that a line can be redrawn on."""
    return stream is not None and not stream.closed and stream.isatty()


def in_notebook() -> bool:
    """Whether the code runs in a notebook, which shows more than text."""
    interactive = sys.modules.get("IPython")
    return interactive is not None and hasattr(interactive.get_ipython(), "kernel")


def width_of(stream: Any) -> int:
    """Return the current columns of a terminal; for a stream that is none, ``COLUMNS`` or 80."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or shutil.get_terminal_size().columns
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size().columns


def clipped(text: str, width: int) -> str:
    """Return the text, or its beginning with an ellipsis where it is longer than `width`.

    >>> clipped("accuracy", 8), clipped("accuracy", 5)
    ('accuracy', 'accu…')
    """
    if text_width(text) <= width:
        return text
    while text_width(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def rate(value: float) -> str:
    """Return a number of images per second.

    >>> rate(1234.5), rate(4.25)
    ('1234', '4.2')
    """
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """Return a duration as seconds, minutes or hours.

    >>> duration(4.44), duration(754), duration(3723)
    ('4.4 s', '12:34', '1:02:03')
    """
    return f"{seconds:.1f} s" if seconds < 59.95 else tqdm.format_interval(round(seconds))

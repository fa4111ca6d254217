"""Where a run prints: a terminal, a notebook or a log, its width, and times in words."""

import os
import shutil
import sys
from typing import Any

from tqdm import tqdm


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
    return text if len(text) <= width else text[: width - 1] + "…"


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
    return f"{seconds:.1f} s" if seconds < 59.95 else tqdm.format_interval(seconds)

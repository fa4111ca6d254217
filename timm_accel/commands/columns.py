"""What the commands print: rows of a table, and facts by name, at the width of the terminal."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from timm_accel.terminal import padded, screen_width, shortened, text_width, wrapped
from timm_accel.text_files import escaped

_GAP = "  "
_MIN_NAME = 16  # columns of a shortened name; with less room the cells are below the name


class Row(NamedTuple):
    """A row of a table.

    Args:
        name: A name or path; it is shortened in its middle if there is no room.
        cells: Short texts.
        note: Text of any length after them; it may take more lines.
    """

    name: str
    cells: Sequence[str] = ()
    note: str = ""


def print_rows(rows: Sequence[Row], right: bool = False) -> None:
    """Print a table with a line for each row, or with the cells below each name if the terminal is narrow.

    Args:
        rows: The rows; a first row may hold the titles of the columns.
        right: Whether cells are aligned to the right, as numbers are.
    """
    rows = [Row(escaped(row.name), [escaped(cell) for cell in row.cells], escaped(row.note)) for row in rows]
    count = max((len(row.cells) for row in rows), default=0)
    widths = [max(text_width(row.cells[at]) for row in rows if at < len(row.cells)) for at in range(count)]
    rows = [row._replace(cells=[padded(cell, widths[at], right) for at, cell in enumerate(row.cells)]) for row in rows]
    longest = max((text_width(row.name) for row in rows), default=0)
    room = min(longest, screen_width() - sum(len(_GAP) + width for width in widths))
    for row in rows:
        print("\n".join(_below(row) if room < min(longest, _MIN_NAME) else _beside(row, room)))


def _beside(row: Row, room: int) -> list[str]:
    """Return a row in a line; the lines of a note are below each other if they have room, or below the row."""
    line = _GAP.join([padded(shortened(row.name, room), room), *row.cells])
    left = screen_width() - text_width(line) - len(_GAP)
    if left >= _MIN_NAME:
        first, *others = wrapped(row.note, left) or [""]
        start = " " * (text_width(line) + len(_GAP))
        return [(line + _GAP + first).rstrip(), *(start + other for other in others)]
    return [line.rstrip(), *_indented(row.note)]


def _below(row: Row) -> list[str]:
    lines = [shortened(row.name, screen_width())]
    line = ""
    for cell in row.cells:
        if line and text_width(line + _GAP + cell) > screen_width():
            lines.append(line.rstrip())
            line = ""
        line += _GAP + cell
    return [*lines, *([line.rstrip()] if line.strip() else []), *_indented(row.note)]


def _indented(text: str) -> list[str]:
    return [_GAP + line for line in wrapped(text, screen_width() - len(_GAP))]


def print_facts(facts: Mapping[str, object]) -> None:
    """Print a line for each fact, its name before its value; values begin in the same column.

    Args:
        facts: Values by name; None is left out.
    """
    shown = {name: escaped(str(value)) for name, value in facts.items() if value is not None}
    width = max(map(text_width, shown), default=0)
    for name, value in shown.items():
        first, *others = wrapped(value, screen_width() - width - len(_GAP)) or [""]
        print(f"{padded(name, width)}{_GAP}{first}".rstrip())
        for other in others:
            print(f"{' ' * width}{_GAP}{other}")


def print_text(text: str) -> None:
    """Print lines of text; one that is too long continues below, indented.

    Args:
        text: The lines, without characters that control a terminal.
    """
    for line in text.split("\n"):
        print("\n".join([line] if text_width(line) <= screen_width() else wrapped(line, screen_width(), _GAP)))

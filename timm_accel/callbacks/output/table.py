"""A table that is printed row by row and fits the width of a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from timm_accel.terminal import clipped
from timm_accel.text_files import is_number

_WIDEST = 24


@dataclass(frozen=True)
class Cell:
    """A value of a row, and the column that it belongs to.

    Args:
        title: The column's title.
        text: The value; empty where there is none.
        rank: How much it matters: 0 most. Columns of the highest numbers are left out first.
        width: The fewest characters of the column.
        name: What tells the column from others of the same title; by default the title.
        beside: The column without which this one is left out.
    """

    title: str
    text: str
    rank: int
    width: int = 0
    name: str = ""
    beside: str | None = None

    @property
    def key(self) -> str:
        """What tells the column from others."""
        return self.name or self.title


class Table:
    """Chooses its columns at the first row, and again when a row has a new column or the width changes."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._width = 0
        self._columns: dict[str, int] = {}  # the width of each

    def lines(self, cells: Sequence[Cell], width: int) -> Iterator[str]:
        """Yield a row as text, after the header where the columns are other ones.

        Args:
            cells: The row, in the order of the columns. A column whose first cell is empty waits for a text, unless
                its cell has a width.
            width: The largest number of characters of a line.
        """
        filled = {cell.key for cell in cells if cell.text.strip() or cell.width}
        if not filled <= self._known or width != self._width:
            self._known, self._width = self._known | filled, width
            self._columns = _choose([cell for cell in cells if cell.key in self._known], width)
            titles = {cell.key: cell.title for cell in cells}
            yield self._row(titles)
        yield self._row({cell.key: cell.text for cell in cells})

    def _row(self, texts: dict[str, str]) -> str:
        fitted = (_fitted(texts.get(name, ""), width).rjust(width) for name, width in self._columns.items())
        return clipped("  ".join(fitted), self._width)


def _choose(cells: Sequence[Cell], width: int) -> dict[str, int]:
    kept: dict[str, int] = {}
    for cell in sorted(cells, key=lambda cell: cell.rank):
        needed = min(max(len(cell.title), len(cell.text), cell.width), _WIDEST)
        room = width - sum(kept.values()) - 2 * len(kept)
        if not kept or (needed <= room and (cell.beside is None or cell.beside in kept)):
            kept[cell.key] = needed
    return {cell.key: kept[cell.key] for cell in cells if cell.key in kept}


def _fitted(text: str, width: int) -> str:
    """Return the text in a column's width: a number with fewer digits, another text with an ellipsis."""
    if len(text) <= width:
        return text
    number, mark = text.rstrip("* "), "*" * text.endswith("*")
    if is_number(number):
        for digits in (".2f", ".0f", ".1e", ".0e"):
            if len(shorter := f"{float(number):{digits}}{mark}") <= width:
                return shorter
    return clipped(text, width)

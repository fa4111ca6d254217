"""CSV and JSON files with names of files, of which some may not be UTF-8, or are made to harm.

Python reads a byte that is not UTF-8 as a lone surrogate, ``os.fsdecode(b"caf\\xe9")`` as ``"caf\\udce9"``, which
no UTF-8 file can hold. It is written as the six characters ``\\udce9``. So are characters that control a terminal, and
in a CSV the first character of a text that a spreadsheet would run as a formula. JSON reads them back by itself;
`unescaped` reads them back in CSV and parquet files. All other names are written as they are.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timm_accel.atomic import atomic_write
from timm_accel.messages import UNPRINTABLE

_FORMULA = "=+@\n\uff1d\uff0b\uff0d\uff20-"  # the first characters of formulas, also in full width
_CODES = "|".join(
    ["00(?:[01][0-9a-f]|[89][0-9a-f]|7f|5c|3b)", "061c|200[ef]|202[89a-e]|206[6-9]", "d[89a-f][0-9a-f]{2}"]
    + [f"{ord(letter):04x}" for letter in _FORMULA]
)
_UNWRITABLE = re.compile(rf"[{UNPRINTABLE}]|\\(?=u(?:{_CODES}))")
_ESCAPE = re.compile(rf"\\u({_CODES})")


def escaped(text: str) -> str:
    r"""Return text that UTF-8 can hold and a terminal can show.

    A lone surrogate is written as ``\udce9``, a control character as ``\u001b``, and a backslash before such letters as
    ``\u005c``.

    >>> escaped("caf\udce9.png"), escaped(r"C:\photos\café.png")
    ('caf\\udce9.png', 'C:\\photos\\café.png')
    """
    return _UNWRITABLE.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def unescaped(text: str) -> str:
    """Return the text that `escaped` was called with, or a cell of a CSV was written from."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]], *, shared: bool = False) -> None:
    """Write a CSV file in UTF-8, atomically.

    Args:
        path: The file.
        rows: The cells of each row; the first row names the columns.
        shared: Whether more than one process may write it at the same time.

    Raises:
        OSError: Nothing can be written there.
    """
    with atomic_write(path, shared=shared) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([cell_of(value) for value in row] for row in rows)


def cell_of(value: Any) -> Any:
    r"""Return a value as a cell of a CSV: a text is no formula for a spreadsheet; numbers stay, also those in a text.

    A list of names is one text with ``;`` between them, and a ``;`` in a name is ``\\u003b``.

    >>> cell_of(["cat", "a;b"])
    'cat;a\\u003bb'
    """
    if isinstance(value, list):
        return ";".join(cell_of(name).replace(";", "\\u003b") for name in value)
    if not isinstance(value, str):
        return value
    return escaped(value) if is_number(value) else re.sub(f"^[{_FORMULA}]", _code, escaped(value))


def is_number(text: str) -> bool:
    """Whether a text is a number as Python reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a file from `write_csv`, by the names of the columns."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{unescaped(name): unescaped(cell or "") for name, cell in row.items() if name is not None} for row in rows]


def json_text(value: Any) -> str:
    """Return a value as JSON that UTF-8 can hold, and that ``json.loads`` reads back."""
    return re.sub(f"[{UNPRINTABLE}]", _code, json.dumps(value, indent=2, ensure_ascii=False))


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file in UTF-8, atomically.

    Raises:
        OSError: Nothing can be written there.
    """
    text = json_text(value)
    with atomic_write(path) as unfinished:
        unfinished.write_text(f"{text}\n", encoding="utf-8")

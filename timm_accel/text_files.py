"""CSV and JSON files with names of files, of which some may not be UTF-8.

Python reads a byte that is not UTF-8 as a lone surrogate, ``os.fsdecode(b"caf\\xe9")`` as ``"caf\\udce9"``, which
no UTF-8 file can hold. It is written as the six characters ``\\udce9``. JSON reads them back by itself; `unescaped`
reads them back in CSV and parquet files. All other names are written as they are.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timm_accel.atomic import atomic_write

_UNWRITABLE = re.compile(r"[\ud800-\udfff]|\\(?=u(?:005c|d[89a-f][0-9a-f]{2}))")
_ESCAPE = re.compile(r"\\u(005c|d[89a-f][0-9a-f]{2})")


def escaped(text: str) -> str:
    r"""Return text that UTF-8 can hold: a lone surrogate as ``\udce9``, a backslash before such letters as ``\u005c``.

    >>> escaped("caf\udce9.png"), escaped(r"C:\photos\café.png")
    ('caf\\udce9.png', 'C:\\photos\\café.png')
    """
    return _UNWRITABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def unescaped(text: str) -> str:
    """Return the text that `escaped` was called with."""
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
        csv.writer(file).writerows([escaped(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a file from `write_csv`, by the names of the columns."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: unescaped(cell or "") for name, cell in row.items() if name is not None} for row in rows]


def json_text(value: Any) -> str:
    """Return a value as JSON that UTF-8 can hold, and that ``json.loads`` reads back."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file in UTF-8, atomically.

    Raises:
        OSError: Nothing can be written there.
    """
    text = json_text(value)
    with atomic_write(path) as unfinished:
        unfinished.write_text(f"{text}\n", encoding="utf-8")

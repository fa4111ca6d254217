"""Read ``history.csv`` of a run, also while the run writes it."""

import csv
from pathlib import Path

from timm_accel.text_files import read_csv


def complete_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a history, by the names of the columns, without a last line that is being written.

    Args:
        path: The file.

    Raises:
        ValueError: It is no CSV in UTF-8.
    """
    try:
        rows = read_csv(path)
        complete = path.read_bytes().endswith(b"\n")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"Expected {str(path)!r} to be the history of a run, but got another file ({error})."
        ) from error
    return rows if complete else rows[:-1]


def number_in(cell: str) -> float | None:
    """Return the number of a cell; None for an empty one, of an epoch without evaluation, and for a list."""
    try:
        return float(cell)
    except ValueError:
        return None

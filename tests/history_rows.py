"""The history file of a run as other runs can have it: without the speed of its epochs."""

from pathlib import Path

from timm_accel.states.speed import COLUMNS
from timm_accel.text_files import read_csv


def without_speed(path: Path) -> bytes:
    """Return the content of a run's file; of ``history.csv`` without the columns of this machine and this moment."""
    if path.name != "history.csv":
        return path.read_bytes()
    rows = [{name: cell for name, cell in row.items() if name not in COLUMNS} for row in read_csv(path)]
    return "\n".join(map(repr, rows)).encode()

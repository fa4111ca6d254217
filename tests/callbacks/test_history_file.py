"""The history file: a row is appended, and a file that changed meanwhile is written again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from history_rows import without_speed
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel.callbacks import Callback, CsvHistoryCallback

FILES: list[tuple[int, int]] = []


class Changing(Callback):
    """Notes the file after each epoch, and changes it after the second."""

    def __init__(self, path: Path, change: Callable[[Path], Any]) -> None:
        self.path, self.change = path, change

    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        FILES.append((self.path.stat().st_ino, self.path.stat().st_size))
        if len(FILES) == 2:
            self.change(self.path)


def run(run_dir: Path, change: Callable[[Path], Any]) -> Path:
    FILES.clear()
    callbacks = [CsvHistoryCallback, Changing(run_dir / "history.csv", change)]
    fit(make_trainer(run_dir=run_dir, callbacks=callbacks), tiny_data(12), num_epochs=4)
    return run_dir / "history.csv"


def test_a_row_is_appended(tmp_path: Path) -> None:
    rows = run(tmp_path, lambda path: None).read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3", "4"]
    assert len({number for number, _ in FILES}) == 1  # the same file
    assert [size for _, size in FILES] == sorted(size for _, size in FILES)


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"3,0.1,half a ro"),
        lambda path: path.rename(path.with_name("moved")) and path.symlink_to("moved"),
        lambda path: path.unlink() or os.mkfifo(path),
    ],
    ids=["deleted", "empty", "shorter", "longer", "link", "pipe"],
)
def test_a_file_that_changed_is_written_again(change: Callable[[Path], Any], tmp_path: Path) -> None:
    changed, whole = run(tmp_path / "changed", change), run(tmp_path / "whole", lambda path: None)
    assert without_speed(changed) == without_speed(whole)

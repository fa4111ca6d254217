"""On a full, read-only or vanished disk each writer gives one sentence and leaves the old file; a run continues."""

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from history_rows import without_speed
from refusal import contents, refused
from small_disks import fill, free, remount, small_disk
from test_atomic import WRITERS, small
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data
from torch.utils.data import TensorDataset

from timm_accel import atomic
from timm_accel.atomic import atomic_write
from timm_accel.callbacks import CsvHistoryCallback, SaveBestCallback, SaveStateCallback
from timm_accel.callbacks.base import Callback
from timm_accel.export import ExportError, export_onnx, export_program
from timm_accel.features import extract_embeddings
from timm_accel.mixins import ClassificationMetricsMixin
from timm_accel.plots import save_figure
from timm_accel.predict import Prediction, write_predictions
from timm_accel.text_files import read_csv

IMAGES = TensorDataset(torch.rand(2, 3, 32, 32), torch.zeros(2))
CAT = [Prediction("a.png", ("cat",), (1.0,), None)]


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    save_figure(Figure(), path)


ALL: dict[str, Callable[[Path], Any]] = WRITERS | {
    "embeddings in parquet": lambda folder: extract_embeddings(small(), IMAGES, folder / "e.parquet"),
    "figure": lambda folder: draw(folder / "figure.png"),
    "onnx": lambda folder: export_onnx(small(), folder / "model.onnx"),
    "pt2": lambda folder: export_program(small(), folder / "model.pt2"),
    "predictions in json": lambda folder: write_predictions(CAT, folder / "p.json"),
    "predictions in parquet": lambda folder: write_predictions(CAT, folder / "p.parquet"),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "8m") as mounted:
        yield mounted


@pytest.mark.parametrize("writer", ALL)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(writer: str, disk: Path) -> None:
    kind = ExportError if writer in ("export", "onnx", "pt2") else OSError
    ALL[writer](disk)
    before = contents(disk)
    fill(disk)
    with refused(kind, "path to be where files can be written", disk, "No space left on device", "Free disk space"):
        ALL[writer](disk)
    free(disk)
    assert contents(disk) == before


@pytest.mark.parametrize("writer", ["audit", "export", "weights", "predictions in parquet"])
def test_a_read_only_disk_is_one_sentence_and_leaves_the_old_file(writer: str, disk: Path) -> None:
    ALL[writer](disk)
    before = contents(disk)
    remount(disk, "ro")
    with refused(OSError, "path to be where files can be written", disk, "Read-only file system", "Choose another"):
        ALL[writer](disk)
    assert contents(disk) == before


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EFBIG, errno.EROFS])
@pytest.mark.parametrize("how", ["plain", "chained", "as text"])
def test_a_quota_and_the_like_are_one_sentence_whoever_raises_it(number: int, how: str, tmp_path: Path) -> None:
    cause = OSError(number, os.strerror(number))
    other = RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})" if how == "as text" else "failed")
    other.__cause__ = cause if how == "chained" else None
    full = number in (errno.EDQUOT, errno.ENOSPC)
    (tmp_path / "a.csv").write_text("old")
    with (
        refused(OSError, tmp_path / "a.csv", os.strerror(number), "Free disk space" if full else "Choose another"),
        atomic_write(tmp_path / "a.csv"),
    ):
        raise cause if how == "plain" else other
    assert contents(tmp_path) == {"a.csv": b"old"}


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^two$"), atomic_write(tmp_path / "a.csv"):
        raise ValueError("two")
    with pytest.raises(PermissionError, match=r"b\.png"), atomic_write(tmp_path / "a.csv"):
        raise PermissionError(errno.EACCES, "no", "b.png")  # of a file that is read


def test_a_folder_that_vanishes_or_is_renamed_while_it_is_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with refused(OSError, "where files can be written", "No such file"), atomic_write(tmp_path / "out" / "a") as path:
        (tmp_path / "out").rename(tmp_path / "moved")
        path.write_text("new")
    assert "moved/a" not in contents(tmp_path)


@pytest.mark.parametrize("kind", ["link to a folder", "broken link", "file", "folder"])
def test_what_waits_under_the_temporary_name_is_removed_and_never_followed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.csv").write_text("theirs")
    waiting = tmp_path / ".a.csv.unfinished"
    match kind:
        case "file":
            waiting.write_text("x")
        case "folder":
            waiting.mkdir()
            (waiting / "a.csv").symlink_to(tmp_path / "theirs" / "a.csv")
        case _:
            waiting.symlink_to(tmp_path / ("theirs" if kind == "link to a folder" else "nowhere"))
    with atomic_write(tmp_path / "a.csv") as path:
        assert path.parent.stat().st_mode & 0o077 == 0  # nobody else puts a link into it
        path.write_text("ours")
    assert contents(tmp_path) == {"a.csv": b"ours", "theirs": None, "theirs/a.csv": b"theirs"}
    waiting.symlink_to(tmp_path / "theirs")
    atomic.remove_leftover(tmp_path / "a.csv")
    assert contents(tmp_path) == {"a.csv": b"ours", "theirs": None, "theirs/a.csv": b"theirs"}


# A run


class Filling(Callback):
    """Fills the disk before the first epoch, and makes room before the third one."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.run_history.current_epoch == 1:
            fill(self.disk)
        if trainer.run_history.current_epoch == 3:
            free(self.disk)


class Freeing(Callback):
    """Makes room before the fourth epoch."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.run_history.current_epoch == 4:
            free(self.disk)


class Classified(ClassificationMetricsMixin):
    def print(self, *args: Any, **kwargs: Any) -> None:
        lines.append(" ".join(map(str, args)))


lines: list[str] = []


def train(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    lines.clear()
    options = {"num_epochs": 4, "eval_dataset": tiny_data(8), "eval_dataloader_kwargs": NO_WORKERS} | options
    best = SaveBestCallback("eval_loss_epoch", greater_is_better=False)
    callbacks = [best, CsvHistoryCallback, SaveStateCallback(), *callbacks]
    return fit(make_trainer(Classified, num_classes=3, callbacks=callbacks, run_dir=folder), **options)


def test_a_run_continues_on_a_full_disk_says_so_once_and_catches_up(disk: Path, tmp_path: Path) -> None:
    train(disk / "run", [Filling(disk)])
    failed = [line for line in lines if "No space left" in line]
    for name in ("history.csv", "config.json"):
        said = [line for line in failed if f"/{name}' (No space left on device)" in line]
        assert [line.endswith("The run continues without this file.") for line in said] == [True]
    train(tmp_path / "run", [])
    assert without_speed(disk / "run/history.csv") == without_speed(tmp_path / "run/history.csv")
    assert not list(disk.rglob("*unfinished*"))
    train(disk / "run", [], resume_from="auto", num_epochs=5)
    train(tmp_path / "run", [], resume_from="auto", num_epochs=5)
    assert without_speed(disk / "run/history.csv") == without_speed(tmp_path / "run/history.csv")


@pytest.mark.parametrize("lost", ["", "best", "history.csv"])
def test_a_resume_on_a_full_disk_says_so_once_and_catches_up(lost: str, disk: Path, tmp_path: Path) -> None:
    for folder in (disk, tmp_path):
        train(folder / "run", [], num_epochs=2)
    if lost == "best":
        (disk / "run" / "best" / "model.safetensors").unlink()
    elif lost:
        (disk / "run" / lost).unlink()
    fill(disk)
    train(disk / "run", [Freeing(disk)], resume_from="auto")
    failed = [line for line in lines if "history.csv' (No space left on device)" in line]
    assert [line.endswith("The run continues without this file.") for line in failed] == [True]
    train(tmp_path / "run", [], resume_from="auto")
    assert without_speed(disk / "run/history.csv") == without_speed(tmp_path / "run/history.csv")
    assert (disk / "run" / "best" / "model.safetensors").is_file()
    assert not (disk / "run" / "lock").exists()


@pytest.mark.parametrize("name", ["history.csv", "best/config.json"])
def test_a_resume_where_a_file_cannot_be_replaced_says_so_and_continues(name: str, tmp_path: Path) -> None:
    train(tmp_path / "run", [], num_epochs=2)
    path = tmp_path / "run" / name
    if name != "history.csv":
        (path.parent / "model.safetensors").unlink()
    with small_disk(path.with_name(f".{path.name}.unfinished"), "1m"):  # in the way, and cannot be removed
        train(tmp_path / "run", [], resume_from="auto", num_epochs=3)
    said = [line for line in lines if line.endswith("The run continues without this file.")]
    assert len(said) == 1
    assert path.name in said[0]
    assert len(read_csv(tmp_path / "run" / "history.csv")) == (2 if name == "history.csv" else 3)
    train(tmp_path / "run", [], resume_from="auto")
    assert [row["epoch"] for row in read_csv(tmp_path / "run" / "history.csv")] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("writer", ["export", "pt2"])
def test_an_export_to_a_full_disk_leaves_nothing_that_cannot_be_freed(writer: str, disk: Path) -> None:
    """Python 3.13 reports a buffer that is freed while a view of it is left, in whatever runs then."""
    fill(disk)
    with refused(ExportError, "No space left on device") as caught:
        ALL[writer](disk)
    seen: list[Any] = [caught.value]
    views = []
    while seen:
        error = seen.pop()
        seen += [each for each in (error.__cause__, error.__context__) if each is not None]
        for frame, _ in traceback.walk_tb(error.__traceback__):
            views += [name for name, value in frame.f_locals.items() if isinstance(value, BytesIO) and is_held(value)]
    assert views == []


def is_held(buffer: BytesIO) -> bool:
    """Whether there is a view of a buffer, which then cannot be resized."""
    try:
        buffer.seek(0, SEEK_END)
        buffer.write(b"x")
    except BufferError:
        return True
    return False

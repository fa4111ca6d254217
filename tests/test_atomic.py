"""Every write of the package is atomic, and the file has the mode that the umask gives."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest
import torch
from PIL import Image
from refusal import contents, refused
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel.atomic import atomic_write, remove_leftover
from timm_accel.audit.report import Audit, Split
from timm_accel.callbacks import CsvHistoryCallback, SaveBestCallback
from timm_accel.data import FolderReader, write_digits
from timm_accel.data.readers import folder_index
from timm_accel.data.splits.splitting import write_split
from timm_accel.export import ExportError, export_torchscript
from timm_accel.features import extract_embeddings
from timm_accel.model_soup import average_weights
from timm_accel.models import create_classifier, save_classifier
from timm_accel.predict import Evaluation, Prediction, write_predictions
from timm_accel.states.growing import Growing
from timm_accel.text_files import write_csv


def small() -> nn.Module:
    return create_classifier("test_resnet", 3, image_size=32)[0]


def write_history(folder: Path) -> None:
    callback = CsvHistoryCallback()
    callback._file = folder / "history.csv"
    callback._columns, callback._rows = ["epoch"], Growing([{"epoch": "1"}])
    callback._rewrite()


EMPTY = Split(0, {"cat": 0}, None, None, {}, 0, None, None, True, (), {})
WRITERS: dict[str, Callable[[Path], Any]] = {
    "audit": lambda folder: Audit({"train": EMPTY}, (), (), ()).to_json(folder / "audit.json"),
    "embeddings": lambda folder: extract_embeddings(
        small(), TensorDataset(torch.rand(2, 3, 32, 32), torch.zeros(2)), folder / "e.npz"
    ),
    "evaluation": lambda folder: Evaluation({}, [], None, [], 0, [], 1.0, ()).to_json(folder / "evaluation.json"),
    "export": lambda folder: export_torchscript(small(), folder / "model.pt"),
    "history": write_history,
    "predictions": lambda folder: write_predictions([Prediction("a.png", ["cat"], [1.0], None)], folder / "p.csv"),
    "split": lambda folder: write_split(folder / "split.csv", {"train": [("a.png", "cat")]}),
    "unreadable images": lambda folder: write_csv(folder / "bad_images.csv", [("path", "error"), ("a.png", "broken")]),
    "weights": lambda folder: save_classifier(small(), folder / "best"),
}


@pytest.fixture(params=[0o002, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def check_modes(folder: Path, umask: int, files: int) -> None:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) == files
    assert {S_IMODE(path.stat().st_mode) for path in paths} == {0o666 & ~umask}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_has_the_mode_that_the_umask_gives(writer: str, umask: int, tmp_path: Path) -> None:
    WRITERS[writer](tmp_path)
    check_modes(tmp_path, umask, files=2 if writer == "weights" else 1)


def test_the_files_of_a_new_folder_and_the_folder_have_it_too(umask: int, tmp_path: Path) -> None:
    for run in ("one", "two"):
        save_classifier(small(), tmp_path / run)
    average_weights([tmp_path / "one", tmp_path / "two"], out=tmp_path / "soup")
    check_modes(tmp_path, umask, files=6)
    check_modes(write_digits(tmp_path / "digits"), umask, files=1797)
    assert {S_IMODE((tmp_path / name).stat().st_mode) for name in ("soup", "digits")} == {0o777 & ~umask}


def test_the_index_of_a_folder_has_it_too(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_index, "_SETTLED_NS", 0)
    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "cat" / "1.png")
    FolderReader(tmp_path / "images", tmp_path / "cache")
    check_modes(tmp_path / "cache", umask, files=1)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[writer](tmp_path)
    for path in tmp_path.rglob("*.*"):
        path.write_bytes(b"old")
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ExportError if writer == "export" else OSError, match="disk full"):
            WRITERS[writer](tmp_path)
    assert contents(tmp_path) == before
    WRITERS[writer](tmp_path)
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert b"old" not in after.values()


def test_a_file_of_0600_that_another_library_wrote_gets_the_mode_of_the_umask(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.safetensors") as path:
        save_file({"a": torch.zeros(1)}, path)
        path.chmod(0o600)  # as safetensors 0.8 leaves it
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_several_may_write_a_shared_file_at_once_and_the_last_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.csv"
    with atomic_write(file, shared=True) as first:
        first.write_text("first")
        with atomic_write(file, shared=True) as second:
            second.write_text("second")
        assert file.read_text() == "second"
    assert contents(tmp_path / "new") == {"a.csv": b"first"}


def test_what_a_killed_writer_has_left_is_removed_by_the_next_or_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for finish in (lambda: remove_leftover(file), lambda: write_over(file)):
        writing = atomic_write(file)
        writing.__enter__().write_text("half")  # and then the process is killed
        assert len(contents(tmp_path)) > 1
        finish()
        assert contents(tmp_path).keys() <= {"a.csv"}
    assert file.read_text() == "whole"


def test_best_weights_that_a_killed_save_has_left_are_removed_at_the_next_start(tmp_path: Path) -> None:
    callback = SaveBestCallback()
    callback._root = tmp_path
    writing = atomic_write(tmp_path / "best" / "config.json")
    writing.__enter__().write_text("half")
    callback._read_best()
    assert contents(tmp_path) == {"best": None}


def test_digits_that_cannot_be_written_are_an_error_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="disk full"):
        write_digits(tmp_path / "digits")
    assert contents(tmp_path) == {}


def write_over(file: Path) -> None:
    with atomic_write(file) as path:
        path.write_text("whole")


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with refused(IsADirectoryError, "path to be a file", "there", "Add a file name"), atomic_write(tmp_path / "there"):
        raise AssertionError

"""State folders: whole or not there, checked before use, kept and deleted by rule."""

import json
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_disks
import torch
from refusal import refused

from timm_accel.states import folder as state_module
from timm_accel.states.folder import (
    newest_state,
    open_state,
    prune_states,
    state_folders,
    write_state,
)
from timm_accel.states.plain import plain
from timm_accel.states.saved_state import COMMON, DamagedStateError

CONTENT = {COMMON: {"weights": torch.arange(1000.0), "epoch": 3}, "rank_0.pt": {"count": 7}}

ABOUT = {
    "versions": {},
    "scheduler": "NoneType",
    "stopped": None,
    "progress": {"epoch": 0, "batch": 0, "stage": "train", "learning_rate": 0.1},
    "num_updates": 7,
    "num_processes": 1,
    "batch_size": 4,
    "accumulation": 1,
    "images": 28,
    "num_epochs": 3,
    "updates_per_epoch": 7,
    "max_num_train_steps": 21,
    "mixed_precision": "no",
    "run": {"tensors": {}, "optimizer": {}, "recipe": {}},
}


def write(root: Path, epoch: int = 0, milestone: bool = False) -> state_module.SavedState:
    return write_state(root, f"epoch_{epoch}_batch_0", CONTENT, ABOUT | {"milestone": milestone})


def names(root: Path) -> list[str]:
    return [folder.name for folder in state_folders(root)]


def newest(root: Path) -> tuple[str | None, list[str]]:
    reports: list[str] = []
    state = newest_state(root, reports.append)
    return (None if state is None else state.folder.name), reports


def test_what_is_written_is_loaded_without_running_code(tmp_path: Path) -> None:
    state = write(tmp_path)
    state.check()
    loaded = open_state(state.folder)
    assert torch.equal(loaded.load(COMMON)["weights"], torch.arange(1000.0))
    assert loaded.load("rank_0.pt") == {"count": 7}
    assert loaded.manifest["milestone"] is False
    size, digest = loaded.manifest["files"][COMMON]
    assert size == (state.folder / COMMON).stat().st_size
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert {path.name for path in state.folder.iterdir()} == {COMMON, "rank_0.pt", "manifest.json"}


def test_a_state_that_was_checked_is_read_once_and_by_each_process_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: (read.append(path.name), load(path, **options))[1])
    state = write(tmp_path)
    state.check()
    elsewhere = pickle.loads(pickle.dumps(state))
    assert torch.equal(state.load(COMMON)["weights"], CONTENT[COMMON]["weights"])
    assert read == [COMMON]
    elsewhere.load(COMMON)
    state.load(COMMON).clear()  # of the caller alone
    assert state.load(COMMON).keys() == CONTENT[COMMON].keys()
    assert read == [COMMON] * 4


def test_serials_rise_and_latest_names_the_newest(tmp_path: Path) -> None:
    for epoch in (0, 5, 2):  # a later state may stand earlier in the run
        write(tmp_path, epoch)
    assert names(tmp_path) == ["000003_epoch_2_batch_0", "000002_epoch_5_batch_0", "000001_epoch_0_batch_0"]
    assert (tmp_path / "latest").read_text() == "000003_epoch_2_batch_0\n"
    assert open_state(tmp_path / "latest").folder.name == "000003_epoch_2_batch_0"
    assert newest(tmp_path) == ("000003_epoch_2_batch_0", [])


@pytest.mark.skipif(sys.platform != "linux", reason="the names of flushed files are read from /proc")
def test_everything_is_on_the_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        order.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    name = write(tmp_path).folder.name
    unfinished = f"{name}.unfinished"
    assert order == [COMMON, "rank_0.pt", "manifest.json", unfinished, f"rename {unfinished}", tmp_path.name, "latest"]


def test_what_a_killed_write_left_is_no_state_and_goes_with_the_next(tmp_path: Path) -> None:
    write(tmp_path)
    left = tmp_path / "000002_epoch_1_batch_0.unfinished"
    left.mkdir()
    (left / COMMON).write_bytes(b"half")
    assert newest(tmp_path) == ("000001_epoch_0_batch_0", [])
    write(tmp_path, 1)
    assert not left.exists()
    assert names(tmp_path) == ["000002_epoch_1_batch_0", "000001_epoch_0_batch_0"]


def test_there_may_be_no_state_at_all(tmp_path: Path) -> None:
    assert newest(tmp_path / "state") == (None, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (truncate, COMMON, ("'common.pt' has", "bytes instead of")),
        (truncate, "rank_0.pt", ("'rank_0.pt' has", "bytes instead of")),
        (flip_a_bit, COMMON, ("'common.pt' has changed since it was written", "SHA-256")),
        (flip_a_bit, "rank_0.pt", ("'rank_0.pt' has changed since it was written",)),
        (Path.unlink, COMMON, ("'common.pt' is missing",)),
        (Path.unlink, "manifest.json", ("'manifest.json' is missing",)),
        (truncate, "manifest.json", ("'manifest.json' cannot be read",)),
    ],
)
def test_damage_is_named_and_the_state_before_it_is_used(damage, file: str, words, tmp_path: Path) -> None:
    write(tmp_path, 0)
    folder = write(tmp_path, 1).folder
    damage(folder / file)
    used, (report,) = newest(tmp_path)
    assert used == "000001_epoch_0_batch_0"
    assert all(word in report for word in (folder.name, *words, "Trying the state before it"))
    with refused(DamagedStateError, folder.name, "complete", *words):
        open_state(folder).check()


def test_no_complete_state_among_damaged_ones_is_an_error(tmp_path: Path) -> None:
    for epoch in range(2):
        truncate(write(tmp_path, epoch).folder / COMMON)
    with refused(DamagedStateError, "a complete state", tmp_path.name, "2 damaged ones", "Restore one"):
        newest(tmp_path)


def test_a_path_that_is_no_state_is_told_what_was_looked_for(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "latest"):
        with refused(ValueError, "folder with a state", "'manifest.json'", f"got {str(path)!r}", "RUN_DIR/state"):
            open_state(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"format": 3, "versions": {"timm_accel": "9.0"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with refused(ValueError, "format 2 or older", "format 3", "timm_accel 9.0", "Upgrade"):
        open_state(folder)
    with refused(ValueError, "format 2 or older"):
        newest(tmp_path)  # not passed over: the run would silently fall back


def test_the_newest_are_kept_and_milestones_never_go(tmp_path: Path) -> None:
    for epoch in range(6):
        write(tmp_path, epoch, milestone=epoch in (0, 2))
    prune_states(tmp_path, 2)
    assert [name.split("_")[2] for name in names(tmp_path)] == ["5", "4", "2", "0"]
    prune_states(tmp_path, 1)
    assert [name.split("_")[2] for name in names(tmp_path)] == ["5", "2", "0"]
    assert {path.name for path in tmp_path.iterdir()} == {*names(tmp_path), "latest"}


def test_states_are_deleted_by_their_names_and_only_the_doomed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in range(9):
        write(tmp_path, epoch, milestone=epoch % 2 == 0)
    opened: list[Path] = []

    def note(path: Path) -> state_module.SavedState:
        opened.append(path)
        return open_state(path)

    monkeypatch.setattr(state_module, "open_state", note)
    prune_states(tmp_path, 3)
    assert [folder.name for folder in opened] == ["000002_epoch_1_batch_0"]
    assert [name.split("_")[2] for name in names(tmp_path)] == ["8", "7", "6", "5", "4", "3", "2", "0"]


def test_a_milestone_of_the_first_format_stays_too(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, milestone=True).folder
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format": 1}
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    folder.rename(tmp_path / "000001_epoch_0_batch_0")
    for epoch in (1, 2):
        write(tmp_path, epoch)
    prune_states(tmp_path, 1)
    assert names(tmp_path) == ["000003_epoch_2_batch_0", "000001_epoch_0_batch_0"]


def test_a_damaged_state_is_left_for_a_person_to_look_at(tmp_path: Path) -> None:
    truncate(write(tmp_path, 0).folder / "manifest.json")
    for epoch in (1, 2):
        write(tmp_path, epoch)
    prune_states(tmp_path, 1)
    assert names(tmp_path) == ["000003_epoch_2_batch_0", "000001_epoch_0_batch_0"]


# A write that fails


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with small_disks.small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def big(size: int) -> dict[str, torch.Tensor]:
    return {"weights": torch.randn(size)}


def test_a_full_disk_leaves_the_state_before_it_complete(small_disk: Path) -> None:
    write(small_disk)
    with pytest.raises(OSError, match="No space left"):
        write_state(small_disk, "epoch_1_batch_0", {COMMON: big(100_000)}, {})
    assert newest(small_disk) == ("000001_epoch_0_batch_0", [])
    assert {path.name for path in small_disk.iterdir()} == {"000001_epoch_0_batch_0", "latest"}  # room was made again
    assert write(small_disk, 1).folder.name == "000002_epoch_1_batch_0"


def test_a_folder_that_turns_read_only_leaves_the_state_before_it_complete(small_disk: Path) -> None:
    write(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        write(small_disk, 1)
    assert newest(small_disk) == ("000001_epoch_0_batch_0", [])


def test_a_file_that_may_not_grow_leaves_the_state_before_it_complete(tmp_path: Path) -> None:
    write(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_state(tmp_path, "epoch_1_batch_0", {COMMON: big(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest(tmp_path) == ("000001_epoch_0_batch_0", [])
    assert {path.name for path in tmp_path.iterdir()} == {"000001_epoch_0_batch_0", "latest"}


# What may be in it


def test_numbers_of_numpy_become_pythons_and_the_rest_stays() -> None:
    tensor = torch.ones(2)
    value = {"a": [np.float64(0.5), (np.int64(2), tensor)], "b": None, "c": {1: b"x", "d": torch.float16}}
    found = plain(value, "it")
    assert found == {"a": [0.5, (2, tensor)], "b": None, "c": {1: b"x", "d": torch.float16}}
    assert type(found["a"][0]) is float
    assert type(found["a"][1][0]) is int
    assert found["a"][1][1] is tensor


class Odd:
    """Something that would load by running code only."""


@pytest.mark.parametrize("value", [np.zeros(2), Odd(), Path("x"), len], ids=lambda value: type(value).__name__)
def test_what_would_load_by_running_code_is_refused_by_name(value: object) -> None:
    with refused(TypeError, "its state['a'] to hold tensors and plain", type(value).__qualname__, "state_dict()"):
        plain({"a": [value]}, "its state")


def test_a_file_that_would_run_code_does_not_load(tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    torch.save({"code": Odd()}, folder / COMMON)
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.?only"):
        open_state(folder).load(COMMON)

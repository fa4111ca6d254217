"""The manifest of a state: any doubt about it means that the state before it is used."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusal import refused
from test_state import newest, write

from timm_accel.states.folder import open_state, state_folders
from timm_accel.states.manifest import signed
from timm_accel.states.saved_state import DamagedStateError


def edit(folder: Path, resign: bool = False, **fields: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | fields
    manifest = {name: value for name, value in manifest.items() if value != "remove"}
    path.write_text(json.dumps(signed(manifest) if resign else manifest))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_updates": 8},
        {"files": {}},
        {"stopped": "done"},
        {"stopped": "remove"},
        {"sha256": "remove"},
        {"sha256": None},
        {"format": 1},
        {"added": 1},
        {"milestone": True},
    ],
    ids=str,
)
def test_one_edited_field_is_named_and_the_state_before_it_used(fields: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, 0)
    folder = write(tmp_path, 1).folder
    edit(folder, **fields)
    used, (report,) = newest(tmp_path)
    assert used == "000001_epoch_0_batch_0"
    assert f"{folder.name}' to be complete, but 'manifest.json' has changed since it was written" in report


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_updates": "remove"}, "has no 'num_updates'"),
        ({"num_updates": -1}, "has -1 under 'num_updates'"),
        ({"num_updates": True}, "has True under 'num_updates'"),
        ({"num_processes": 0}, "has 0 under 'num_processes'"),
        ({"num_processes": 2}, "does not name 'rank_1.pt'"),
        ({"progress": []}, "has [] under 'progress'"),
        ({"progress": {"epoch": 1, "batch": 0, "stage": "sleep", "learning_rate": 0.1}}, "under 'progress'"),
        ({"run": {"tensors": {}, "optimizer": None, "recipe": {}}}, "under 'run'"),
        ({"files": []}, "has [] under 'files'"),
        ({"files": {"../common.pt": [1, "0" * 64]}}, "under 'files'"),
        ({"files": {"common.pt": [1, "0" * 63]}}, "under 'files'"),
        ({"files": {}}, "does not name 'common.pt'"),
        ({"stopped": 1}, "has 1 under 'stopped'"),
    ],
    ids=str,
)
def test_a_field_of_another_kind_is_named_even_where_the_digest_fits(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, 1).folder
    edit(folder, resign=True, **fields)
    with refused(DamagedStateError, folder.name, "'manifest.json'", words, "Use another state"):
        open_state(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b"null", b"\xff\xfe\x00", b"{", b"[" * 100_000, b'{"format": NaN}']
)
def test_a_manifest_that_is_no_object_is_damage(content: bytes, tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    (folder / "manifest.json").write_bytes(content)
    with refused(DamagedStateError, folder.name, "'manifest.json'", "Use another state"):
        open_state(folder)


def test_other_spaces_and_another_order_are_no_change(tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(dict(reversed(manifest.items())), indent=7))
    open_state(folder).check()


def test_the_manifest_of_another_state_is_damage(tmp_path: Path) -> None:
    first, second = write(tmp_path, 0).folder, write(tmp_path, 1).folder
    (second / "common.pt").write_bytes(b"other")
    (second / "manifest.json").write_bytes((first / "manifest.json").read_bytes())
    used, (report,) = newest(tmp_path)
    assert used == first.name
    assert "'common.pt' has 5 bytes instead of" in report


def test_a_file_too_many_is_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write(tmp_path, 0)
    folder = write(tmp_path, 1).folder
    (folder / ".DS_Store").write_bytes(b"")
    assert newest(tmp_path) == (folder.name, [])
    (folder / "rank_1.pt").write_bytes(b"")
    used, (report,) = newest(tmp_path)
    assert used == "000001_epoch_0_batch_0"
    assert "'rank_1.pt' is no file of it" in report


def test_a_file_in_place_of_a_state_is_damage(tmp_path: Path) -> None:
    write(tmp_path, 0)
    (tmp_path / "000009_epoch_1_batch_0").write_text("")
    used, (report,) = newest(tmp_path)
    assert used == "000001_epoch_0_batch_0"
    assert "000009_epoch_1_batch_0" in report


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"..", b"../../etc", b"000009_epoch_9_batch_9\n", b"x" * 9999])
def test_latest_is_only_a_hint(text: bytes, tmp_path: Path) -> None:
    for epoch in range(2):
        write(tmp_path, epoch)
    (tmp_path / "latest").write_bytes(text)
    assert newest(tmp_path) == ("000002_epoch_1_batch_0", [])
    assert open_state(tmp_path / "latest").folder == state_folders(tmp_path)[0]


def test_a_milestone_is_known_by_its_name(tmp_path: Path) -> None:
    assert write(tmp_path, 3, milestone=True).folder.name == "000001_epoch_3_batch_0_milestone"
    assert write(tmp_path, 4).folder.name == "000002_epoch_4_batch_0"

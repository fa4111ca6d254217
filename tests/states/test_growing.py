"""Lists that grow: each part is written once, and whatever is cut off or deleted, the lists are complete."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import cut, every_update, make_run, same_outcome, states, train
from test_state import ABOUT as FIELDS
from test_state import CONTENT

from timm_accel.callbacks import CsvHistoryCallback, SaveBestCallback
from timm_accel.states import growing
from timm_accel.states.folder import newest_state, open_state, write_state
from timm_accel.states.growing import GrowingParts, load_common

ABOUT = FIELDS | {"milestone": False}
A, B = ("history", "metrics", "a"), ("history", "metrics", "b")


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "EPOCHS_PER_PART", 2)


def grown(epochs: int) -> tuple[GrowingParts, dict[Any, list[Any]]]:
    """One list with a value each epoch, and one with a value each third epoch."""
    parts, lists = GrowingParts(), {A: [], B: []}
    for epoch in range(1, epochs + 1):
        lists[A].append(epoch)
        if epoch % 3 == 0:
            lists[B].append(-epoch)
        parts.end_epoch(epoch, lambda: lists)
    return parts, lists


def test_parts_hold_what_was_added_and_the_rest_is_short(short_parts: None) -> None:
    parts, lists = grown(5)
    made, rest = parts.split(lists, lambda item: item)
    assert {file: make() for file, make in made.items()} == {
        "epochs_to_2.pt": {A: [1, 2], B: []},
        "epochs_to_4.pt": {A: [3, 4], B: [-3]},
    }
    assert rest == {A: [5], B: []}


def test_joined_parts_are_the_lists_and_continue(short_parts: None) -> None:
    parts, lists = grown(24)
    made, _ = parts.split(lists, lambda item: item)
    again = GrowingParts()
    contents = {file: make() for file, make in reversed(made.items())}
    assert again.join(contents) == {A: lists[A], B: lists[B]}
    assert again.split(lists, lambda item: item)[0].keys() == made.keys()


def test_a_deleted_list_is_written_again_whole(short_parts: None) -> None:
    parts, lists = grown(5)
    lists[A] = [7]
    made, rest = parts.split(lists, lambda item: item)
    assert made == {}
    assert rest == {A: [7], B: [-3]}


def test_a_part_is_linked_and_survives_the_state_that_it_was_written_for(tmp_path: Path) -> None:
    def made() -> Any:
        calls.append(1)
        return {A: [1]}

    calls: list[int] = []
    first = write_state(tmp_path, "epoch_1_batch_0", CONTENT, ABOUT, {"epochs_to_2.pt": made})
    second = write_state(tmp_path, "epoch_2_batch_0", CONTENT, ABOUT, {"epochs_to_2.pt": made}, first)
    assert calls == [1]
    assert os.stat(second.folder / "epochs_to_2.pt").st_nlink == 2
    shutil.rmtree(first.folder)
    second.check()
    third = write_state(tmp_path, "epoch_3_batch_0", CONTENT, ABOUT, {"epochs_to_2.pt": made}, first)
    assert calls == [1, 1]  # what cannot be linked is written
    third.check()
    (third.folder / "epochs_to_2.pt").write_bytes(b"x")
    reports: list[str] = []
    found = newest_state(tmp_path, reports.append)
    assert found is not None
    assert found.folder == second.folder
    assert "'epochs_to_2.pt' has 1 bytes" in reports[0]


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    before = None
    for _ in range(2):
        before = write_state(tmp_path, "epoch_1_batch_0", CONTENT, ABOUT, {"epochs_to_2.pt": lambda: {A: [1]}}, before)
        before.check()
        assert os.stat(before.folder / "epochs_to_2.pt").st_nlink == 1


@pytest.mark.parametrize("number", [3, 7, 8, 15, 16, 20])
def test_a_run_that_is_cut_anywhere_ends_in_the_same_bits(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "EPOCHS_PER_PART", 1)

    def run(run_dir: Path, **options: Any) -> Any:
        saving = [every_update(), CsvHistoryCallback, SaveBestCallback("eval_loss_epoch", greater_is_better=False)]
        return train(make_run(run_dir, callbacks=saving), **options)

    run(tmp_path / "whole")
    last = open_state(states(tmp_path / "whole")[-1])
    assert [name for name in last.manifest["files"] if "epochs" in name] == [f"epochs_to_{n}.pt" for n in (1, 2, 3)]
    assert last.load("common.pt")["history"]["metrics"]["eval_loss_epoch"] == []
    complete = load_common(last)
    assert len(complete["history"]["metrics"]["eval_loss_epoch"]) == 3
    assert [row["epoch"] for row in complete["callbacks"]["CsvHistoryCallback"]["rows"]] == ["1", "2", "3"]
    resumed_dir = cut(tmp_path / "whole", number, tmp_path / "cut")
    (resumed_dir / "history.csv").unlink()  # a state restores it
    run(resumed_dir, resume_from="auto")
    assert same_outcome(tmp_path / "whole", resumed_dir) is None

"""Whatever is changed in a run folder, the resumed run ends in the same bits, or one sentence tells what is wrong.

`TAMPER=400 pytest -rP tests/tamper` tries so many changes instead of 60, and shows how each ended.
"""

import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import Interrupting, Noting, every_update, make_run, outcome, positions, train
from tampering import Change, all_changes, choose
from tiny_runs import differences

from timm_accel.callbacks import CsvHistoryCallback, EarlyStoppingCallback, SaveBestCallback
from timm_accel.messages import own_sentence
from timm_accel.states import growing

COUNT = int(os.environ.get("TAMPER", "60"))


def run_of(run_dir: Path, kind: type = Noting, **options: Any) -> Any:
    callbacks = [
        every_update(keep=2, keep_when_done=1),
        CsvHistoryCallback,
        SaveBestCallback("eval_loss_epoch", greater_is_better=False),
        EarlyStoppingCallback(patience=50),
    ]
    return make_run(run_dir, kind, callbacks=callbacks, **options)


def interrupted(run_dir: Path, at: int, **options: Any) -> Path:
    trainer = run_of(run_dir, Interrupting, **options)
    trainer.at, trainer.number = at, signal.SIGTERM
    with pytest.raises(SystemExit):
        train(trainer)
    return run_dir


@pytest.fixture(scope="module", autouse=True)
def short_parts() -> Iterator[None]:
    """A part of the history for each epoch, so that states hold parts."""
    before, growing.EPOCHS_PER_PART = growing.EPOCHS_PER_PART, 1
    yield
    growing.EPOCHS_PER_PART = before


@pytest.fixture(scope="module")
def runs(short_parts: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Change]]:
    """An interrupted run, what it leaves if it is resumed unchanged, and the changes."""
    folder = tmp_path_factory.mktemp("runs")
    train(run_of(folder / "whole"))
    run, other = interrupted(folder / "run", 8), interrupted(folder / "other", 8, seed=5)
    assert positions(run) == ["1.1", "1.2"]
    changes = all_changes(run, other)
    assert len(changes) > 1000
    return run, outcome(folder / "whole"), choose(changes, COUNT)


@pytest.mark.parametrize("number", range(COUNT))
def test_a_changed_run_folder_gives_the_same_bits_or_one_sentence(
    number: int, runs: tuple[Path, dict[str, Any], list[Change]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, expected, changes = runs
    change, target = changes[number], tmp_path / "run"
    shutil.copytree(run, target)
    change.apply(target)
    error = failure_of(target)
    if error is not None:
        sentence = own_sentence(error)
        assert sentence is not None, f"{change.kind} {change.name}: raw {error!r}"
        assert "\n" not in sentence
        print("It ended in one sentence.")
        return
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Expected ")]
    added = f"/files/{change.name}" if change.kind == "a file too many" else ""
    changed = [place for place in differences(expected, outcome(target)) if place != added]
    changed = [place for place in changed if "/SaveBestCallback/" not in place]
    if not changed:
        print("It ended in the same bits.")
        return
    folders = {"/".join(place.split("/")[1:3]) for place in changed}
    assert folders <= {"files/best", "files/best_ema"}, f"{change.kind} {change.name}: silent {changed[:3]}"
    for folder in folders:
        named = str(target / folder.removeprefix("files/"))
        assert any(f"{named}'" in line or f"{named}/" in line for line in said), f"{change.kind} {change.name}: {said}"
    print("It ended in other best weights, as one line says.")


def failure_of(run_dir: Path) -> Exception | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(run_of(run_dir), resume_from="auto")
    except Exception as error:
        return error
    return None


def test_all_kinds_of_changes_are_tried(runs: tuple[Path, dict[str, Any], list[Change]]) -> None:
    kinds = {change.kind.partition(":")[0] for change in runs[2]}
    assert {"truncate", "flip a byte", "empty", "remove", "swap", "NaN", "text", "null", "list", "object"} <= kinds

"""Which run may use a run folder, and from which of its states it resumes."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import contents, refused
from resumed_runs import (
    Interrupting,
    cut,
    every_update,
    make_run,
    outcome,
    positions,
    run_script,
    same_outcome,
    states,
    train,
)
from tiny_runs import fit, make_trainer

from timm_accel.callbacks import CsvHistoryCallback, SaveBestCallback, SaveStateCallback, TimeLimitCallback
from timm_accel.models import signed_config
from timm_accel.states.run_dir import lock_run_dir, unlock_run_dir


def test_auto_starts_from_scratch_where_there_is_nothing(tmp_path: Path) -> None:
    trainer = train(make_run(tmp_path / "new"), resume_from="auto", num_epochs=1)
    assert trainer.num_updates == 7


def test_what_a_run_left_before_its_first_state_is_started_from_scratch(tmp_path: Path) -> None:
    """Its files are its own: the folder of states is made before them."""
    train(make_run(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for folder in states(tmp_path / "cut"):
        shutil.rmtree(folder)
    assert (tmp_path / "cut/history.csv").exists()
    train(make_run(tmp_path / "cut"), resume_from="auto")
    assert same_outcome(tmp_path / "whole", tmp_path / "cut") is None


def test_a_run_without_states_is_never_overwritten(tmp_path: Path) -> None:
    train(make_run(tmp_path, callbacks=[CsvHistoryCallback]), num_epochs=1)
    before = contents(tmp_path)
    for resume_from in (None, "auto"):
        with refused(FileExistsError, "hold no run yet", "'history.csv'", "resume_from='auto'"):
            train(make_run(tmp_path), resume_from=resume_from)
    assert contents(tmp_path) == before


def test_a_run_with_states_is_not_started_from_scratch_by_chance(tmp_path: Path) -> None:
    train(make_run(tmp_path, callbacks=[SaveStateCallback]), num_epochs=1)
    with refused(FileExistsError, "hold no run yet", "'state'"):
        train(make_run(tmp_path))


def test_better_weights_in_the_folder_stay(tmp_path: Path) -> None:
    train(make_run(tmp_path), num_epochs=1)
    config = tmp_path / "best" / "config.json"
    text = json.loads(config.read_text())
    text["best"] |= {"value": -1.0, "epoch": 77}  # a run that was ahead of its last state
    config.write_text(json.dumps(signed_config(config.parent, text)))
    before = contents(tmp_path / "best")
    train(make_run(tmp_path), num_epochs=3, resume_from="auto")
    assert contents(tmp_path / "best") == before
    assert json.loads((tmp_path / "best_ema" / "config.json").read_text())["best"]["epoch"] > 1


def test_best_weights_by_another_metric_are_not_compared(tmp_path: Path) -> None:
    train(make_run(tmp_path), num_epochs=1)
    callbacks = [every_update(), CsvHistoryCallback, SaveBestCallback("accuracy")]
    with refused(ValueError, "watch_metric", "best", "'eval_loss_epoch'", "got 'accuracy'"):
        train(make_run(tmp_path, callbacks=callbacks), num_epochs=2, resume_from="auto")


def test_an_older_state_by_its_path_becomes_the_newest(tmp_path: Path) -> None:
    train(make_run(tmp_path / "run"), num_epochs=2)
    older = states(tmp_path / "run")[3]
    failing = make_run(tmp_path / "run", Interrupting)
    failing.at, failing.number = 1, signal.SIGTERM
    with pytest.raises(SystemExit):
        train(failing, num_epochs=2, resume_from=older)
    assert positions(tmp_path / "run")[-3:] == ["0.4", "0.5", "0.6"]
    train(make_run(tmp_path / "run"), num_epochs=2, resume_from=tmp_path / "run/state/latest")
    train(make_run(tmp_path / "other"), num_epochs=2)
    assert same_outcome(tmp_path / "run", tmp_path / "other") is None


def test_a_state_by_its_path_continues_in_another_folder_or_in_none(tmp_path: Path) -> None:
    train(make_run(tmp_path / "whole"))
    state = states(tmp_path / "whole")[4]
    before = contents(tmp_path / "whole")
    train(make_run(tmp_path / "new"), resume_from=state)
    found, expected = outcome(tmp_path / "new"), outcome(tmp_path / "whole")
    assert found["files"]["history.csv"] == expected["files"]["history.csv"]
    alone = train(make_run(None, callbacks=()), resume_from=str(state))
    assert alone.num_updates == 21
    assert all(
        torch.equal(value, expected["state"]["common.pt"]["model"][name])
        for name, value in alone.model.state_dict().items()
    )
    assert contents(tmp_path / "whole") == before
    train(make_run(tmp_path / "taken", callbacks=[CsvHistoryCallback]), num_epochs=1)
    with refused(FileExistsError, "hold no run yet"):
        train(make_run(tmp_path / "taken"), resume_from=state)


def test_a_damaged_newest_state_is_reported_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_run(tmp_path / "whole"))
    resumed_dir = cut(tmp_path / "whole", 9, tmp_path / "cut")
    damaged = states(resumed_dir)[-1] / "common.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    train(make_run(resumed_dir), resume_from="auto")
    said = capsys.readouterr().out
    assert "'common.pt' has" in said
    assert f"Resumed from {str(states(tmp_path / 'cut')[8])!r}" in said
    assert same_outcome(tmp_path / "whole", resumed_dir) is None
    with refused(ValueError, "to be complete", "'common.pt' has"):
        train(make_run(None, callbacks=()), resume_from=damaged.parent)


def test_one_folder_holds_one_run_at_a_time(tmp_path: Path) -> None:
    lock = lock_run_dir(tmp_path)
    for resume_from in (None, "auto"):
        with refused(BlockingIOError, "one run at a time", str(tmp_path), f"process {os.getpid()} on ", "Wait for it"):
            train(make_run(tmp_path), resume_from=resume_from)
    unlock_run_dir(lock)
    train(make_run(tmp_path), num_epochs=1)
    assert not (tmp_path / "lock").exists()


def test_a_killed_run_with_workers_leaves_the_folder_free(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
import os, signal, sys
from resumed_runs import Noting, make_run, settle, train
from pathlib import Path

class Killed(Noting):
    def calculate_train_batch_loss(self, batch):
        if len(self.images) == 9:
            settle(self)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().calculate_train_batch_loss(batch)

train(make_run(Path(sys.argv[1]), Killed), train_dataloader_kwargs={"num_workers": 2})
""",
    )
    assert result.returncode == -signal.SIGKILL
    resumed = train(make_run(tmp_path / "run"), resume_from="auto")  # at once, while its workers may still be there
    assert len(resumed.rates) == 21 - 9


def test_files_elsewhere_are_not_taken_for_those_of_a_run_that_begins(tmp_path: Path) -> None:
    def run(name: str) -> None:
        callbacks = [CsvHistoryCallback(tmp_path / "shared.csv"), SaveStateCallback]
        train(make_run(tmp_path / name, callbacks=callbacks), num_epochs=1, resume_from="auto")

    run("first")
    with refused(FileExistsError, "shared.csv"):
        run("second")
    run("first")  # its own


def test_a_resume_cleans_up_what_a_kill_at_the_end_has_left(tmp_path: Path) -> None:
    train(make_run(tmp_path), num_epochs=1)
    root = tmp_path / "state"
    newest = states(tmp_path)[-1].name
    (root / "latest").write_text("000001_epoch_0_batch_1\n")  # killed between the state's rename and this
    (root / "000000_epoch_0_batch_0.unfinished").mkdir()  # killed while an old state was deleted
    train(make_run(tmp_path), num_epochs=1, resume_from="auto")  # already finished: nothing is written
    assert states(tmp_path)[-1].name == newest
    assert (root / "latest").read_text() == f"{newest}\n"
    assert not list(root.glob("*.unfinished"))


def test_states_need_a_folder() -> None:
    for callback in (SaveStateCallback, TimeLimitCallback(1)):
        with refused(ValueError, "Callback to have a folder", "run_dir", "Pass run_dir to the trainer"):
            make_trainer(callbacks=[callback])
    with refused(ValueError, "run_dir to be given beside resume_from='auto'", "got None", "path of a state"):
        fit(make_trainer(), resume_from="auto")


@pytest.mark.parametrize("value", [True, 3])
def test_a_resume_from_that_is_no_path_is_refused(value: Any, tmp_path: Path) -> None:
    with refused(TypeError, "resume_from", "'auto' or the path of a state", f"got {value!r}"):
        train(make_run(tmp_path), resume_from=value)


def test_a_path_that_is_no_state_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    (tmp_path / "upstreams").mkdir()
    (tmp_path / "upstreams/trainer_metadata.pt").write_bytes(b"")
    before = contents(tmp_path)
    for path in (tmp_path / "upstreams", tmp_path / "nothing"):
        with refused(ValueError, "folder with a state", "'manifest.json'", f"got {str(path)!r}"):
            fit(make_trainer(run_dir=tmp_path / "run"), resume_from=path)
    assert contents(tmp_path) == before

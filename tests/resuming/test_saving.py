"""When a state is written, by whom, how a run is interrupted, and who may use a run folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import contents, refused
from resumed_runs import Augmented, Noting, cut, every_update, make_run, outcome, same_outcome, states, train
from timm.optim import create_optimizer_v2
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import (
    Callback,
    CsvHistoryCallback,
    EarlyStoppingCallback,
    PrintMetricsCallback,
    ProgressBarCallback,
    SaveBestCallback,
    SaveStateCallback,
    TimeLimitCallback,
)
from timm_accel.states import folder as state_module
from timm_accel.states.run_dir import lock_run_dir, unlock_run_dir


def positions(run_dir: Path) -> list[str]:
    """Where the run stood at each of its states: ``epoch.batch``."""
    return [".".join(folder.name.split("_")[2::2]) for folder in states(run_dir)]


def run_with(callback: Any, run_dir: Path, **options: Any) -> Any:
    """5 batches an epoch, 4 epochs."""
    return fit(make_trainer(run_dir=run_dir, callbacks=[callback]), tiny_data(20), **({"num_epochs": 4} | options))


def run_script(folder: Path, text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run python in a process of its own; its argument is the run folder ``run`` in `folder`."""
    (folder / "run.py").write_text(text)
    return subprocess.run(
        [sys.executable, str(folder / "run.py"), str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        check=False,
        **options,
    )


# When


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["1.0", "2.0", "3.0", "4.0"]),
        ({"every_n_epochs": 2}, ["2.0", "4.0"]),
        ({"every_n_epochs": 3}, ["3.0", "4.0"]),  # always at the end of the run
        ({"every_n_epochs": None}, ["4.0"]),
        ({"every_n_epochs": None, "every_n_updates": 7}, ["1.2", "2.4", "4.0"]),
        ({"every_n_epochs": 2, "milestone_every_n_epochs": 3}, ["2.0", "3.0", "4.0"]),
    ],
)
def test_states_come_when_they_are_due(options: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    run_with(SaveStateCallback(keep=100, **options), tmp_path)
    assert positions(tmp_path) == expected


def test_with_accumulation_only_complete_updates_are_saved(tmp_path: Path) -> None:
    run_with(SaveStateCallback(every_n_updates=1, keep=100), tmp_path, num_epochs=1, gradient_accumulation_steps=2)
    assert positions(tmp_path) == ["0.2", "0.4", "0.5", "1.0"]


def test_minutes_are_counted_from_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Callback):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            clock[0] += 60

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    trainer = make_trainer(run_dir=tmp_path, callbacks=[Slow, SaveStateCallback(every_minutes=3, keep=100)])
    fit(trainer, tiny_data(20), num_epochs=2)
    assert positions(tmp_path) == ["0.3", "1.0", "1.3", "2.0"]


def test_the_newest_are_kept_and_the_milestones(tmp_path: Path) -> None:
    run_with(SaveStateCallback(every_n_updates=2, keep=2, milestone_every_n_epochs=2), tmp_path)
    assert positions(tmp_path) == ["2.0", "3.3", "3.5", "4.0"]
    assert [json.loads((folder / "manifest.json").read_text())["milestone"] for folder in states(tmp_path)] == [
        True,
        False,
        False,
        True,
    ]


def test_a_state_is_written_after_everything_else_of_its_update(tmp_path: Path) -> None:
    class Last(Callback):
        updates: list[int] = []  # noqa: RUF012

        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            self.updates.append(len(states(tmp_path)))
            assert all(parameter.grad is None for parameter in trainer.model.parameters())

    trainer = make_trainer(TimmMixupTrainer, ema_decay=0.1, run_dir=tmp_path, callbacks=[every_update(), Last])
    fit(trainer, tiny_data(20), num_epochs=1)
    assert Last.updates == [0, 1, 2, 3, 4]  # after the callbacks, whatever their order
    saved = outcome(tmp_path)["state"]["common.pt"]["components"]["ema_model"]
    assert all(
        torch.equal(saved[f"module.{key}"], value) for key, value in trainer.ema_model.module.state_dict().items()
    )


def test_any_callback_may_ask_for_a_state(tmp_path: Path) -> None:
    class Asking(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 3:
                trainer.request_save(milestone=True)

    trainer = make_trainer(run_dir=tmp_path, callbacks=[Asking])
    trainer.request_save()  # outside a run: nothing to save
    fit(trainer, tiny_data(20))
    assert positions(tmp_path) == ["0.3"]
    with refused(ValueError, "run_dir to be given", "states are saved there", "got None", "Pass run_dir"):
        make_trainer().request_save()


def test_a_state_asked_for_between_training_and_evaluation_goes_on_there(tmp_path: Path) -> None:
    class Asking(Callback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_save()

        def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_save()

    def run(run_dir: Path, **options: Any) -> Any:
        callbacks = [Asking, SaveStateCallback(keep=100), CsvHistoryCallback, PrintMetricsCallback]
        return train(make_run(run_dir, callbacks=callbacks), **options)

    reference = run(tmp_path / "whole")
    stages = [
        json.loads((folder / "manifest.json").read_text())["progress"]["stage"] for folder in states(tmp_path / "whole")
    ]
    assert stages == ["evaluate", "end", "train"] * 3
    for number in range(8):
        resumed_dir = cut(tmp_path / "whole", number, tmp_path / str(number))
        resumed = run(resumed_dir, resume_from="auto")
        assert len(resumed.rates) == len(reference.rates) - 7 * (number // 3 + 1)
        assert same_outcome(tmp_path / "whole", resumed_dir) is None, number


def test_the_screen_shows_a_resumed_epoch_as_it_stands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    callbacks = [every_update(), ProgressBarCallback, PrintMetricsCallback]
    train(make_run(tmp_path / "whole", callbacks=callbacks), num_epochs=1)
    lines = capfd.readouterr().out.splitlines()
    resumed_dir = cut(tmp_path / "whole", 4, tmp_path / "cut")
    train(make_run(resumed_dir, callbacks=callbacks), num_epochs=1, resume_from="auto")
    shown = capfd.readouterr()
    assert "71%" in shown.err  # 5 of 7 batches are done before the first
    first, second = shown.out.splitlines()
    assert first.startswith("Resumed from '")
    assert first.endswith("000005_epoch_0_batch_5': 0 of 1 epochs are done, and 5 batches of the next.")
    assert second.rpartition("  ")[0] == lines[0].rpartition("  ")[0]  # all but the seconds


# How long a run is


def test_num_epochs_is_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_run(tmp_path), num_epochs=2)
    again = train(make_run(tmp_path), num_epochs=2, resume_from="auto")
    assert again.rates == []
    assert again.num_updates == 14
    assert "Already finished: all 2 epochs are done." in capsys.readouterr().out
    assert (tmp_path / "history.csv").read_text().count("\n") == 3


def test_a_finished_run_that_is_resumed_has_its_weights_and_its_history(tmp_path: Path) -> None:
    first = train(make_run(tmp_path), num_epochs=2)
    again = train(make_run(tmp_path), num_epochs=2, resume_from="auto")
    assert same_weights(first.model, again.model)
    assert same_weights(first.ema_model.module, again.ema_model.module)
    assert again.run_history._metrics == first.run_history._metrics


@pytest.mark.parametrize("on_epochs", [True, False])
def test_a_longer_run_goes_on_with_the_schedule_of_its_length(
    on_epochs: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"scheduler_args": {"sched": "cosine", "warmup_epochs": 1, "step_on_epochs": on_epochs}}
    train(make_run(tmp_path / "run", **options), num_epochs=2)
    longer = train(make_run(tmp_path / "run", **options), num_epochs=5, resume_from="auto")
    assert longer.rates == train(make_run(tmp_path / "other", **options), num_epochs=5).rates[14:]
    said = "The schedule has the length of this run: num_epochs 2 before, 5 now; max_num_train_steps 14 before, 35 now."
    assert said in capsys.readouterr().out


def test_a_run_cut_short_by_max_num_train_steps_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_run(tmp_path / "whole"), max_num_train_steps=10)
    for number in range(len(states(tmp_path / "whole"))):
        resumed_dir = cut(tmp_path / "whole", number, tmp_path / str(number))
        resumed = train(make_run(resumed_dir), max_num_train_steps=10, resume_from="auto")
        assert resumed.num_updates == 10
        assert same_outcome(tmp_path / "whole", resumed_dir) is None
    assert "Already finished" in capsys.readouterr().out


def test_fewer_epochs_than_are_done_are_refused(tmp_path: Path) -> None:
    train(make_run(tmp_path / "run"), num_epochs=3)
    before = contents(tmp_path)
    with refused(ValueError, "num_epochs to be at least 3", "has got that far", "got 2", "counts the whole run"):
        train(make_run(tmp_path / "run"), num_epochs=2, resume_from="auto")
    assert contents(tmp_path) == before
    within = cut(tmp_path / "run", 9, tmp_path / "within")  # in the second epoch
    with refused(ValueError, "num_epochs to be at least 2", "got 1"):
        train(make_run(within), num_epochs=1, resume_from="auto")


def test_a_run_that_stopped_early_is_finished_and_may_be_made_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(num_epochs: int, patience: int = 2, **options: Any) -> Any:
        stopping = EarlyStoppingCallback("train_loss_epoch", patience=patience, min_delta=100.0)
        trainer = make_trainer(run_dir=tmp_path, callbacks=[SaveStateCallback(every_n_epochs=50), stopping])
        return fit(trainer, tiny_data(20), num_epochs=num_epochs, **options), stopping

    run(10)
    assert positions(tmp_path) == ["3.0"]  # the first epoch, and two without an improvement
    again, stopping = run(10, resume_from="auto")
    assert again.num_updates == 15
    assert stopping.epochs_without == 2
    assert "Already finished: Stopped early: train_loss_epoch has not improved" in capsys.readouterr().out
    longer, stopping = run(12, patience=4, resume_from="auto")
    assert longer.num_updates == 25  # two more without an improvement: the count went on
    assert stopping.epochs_without == 4


# Interruptions


class Interrupting(Noting):
    """Sends a signal to its own process in a given micro-batch."""

    at, number = 0, signal.SIGTERM

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        if len(self.images) == self.at:
            os.kill(os.getpid(), self.number)
        return super().calculate_train_batch_loss(batch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 3, 6, 9])
def test_a_signal_saves_once_and_leaves_with_code_75(
    number: int, at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_run(tmp_path / "whole", callbacks=[SaveStateCallback(), CsvHistoryCallback]))
    interrupted = make_run(tmp_path / "cut", Interrupting, callbacks=[SaveStateCallback(), CsvHistoryCallback])
    interrupted.at, interrupted.number = at, number
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as left:
        train(interrupted, resume_from="auto")
    assert left.value.code == 75
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    newest = states(tmp_path / "cut")[-1]
    assert positions(tmp_path / "cut") == ["1.0"] * (at >= 7) + [f"{at // 7}.{at % 7 + 1}"]
    said = capsys.readouterr().out
    assert f"Received {signal.Signals(number).name}." in said
    assert f"Interrupted; the state is {str(newest)!r}." in said
    assert "resume_from='auto'" in said
    train(make_run(tmp_path / "cut", callbacks=[SaveStateCallback(), CsvHistoryCallback]), resume_from="auto")
    assert same_outcome(tmp_path / "whole", tmp_path / "cut") is None


def test_signals_are_left_alone_where_no_states_are_kept(tmp_path: Path) -> None:
    seen = []

    class Looking(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    fit(make_trainer(run_dir=tmp_path / "plain", callbacks=[Looking]))
    assert set(seen) == {signal.getsignal(signal.SIGTERM)}
    seen.clear()
    fit(make_trainer(run_dir=tmp_path / "kept", callbacks=[Looking, SaveStateCallback]))
    assert signal.getsignal(signal.SIGTERM) not in seen


def test_sigint_once_more_a_second_later_interrupts_at_once(tmp_path: Path) -> None:
    class Twice(Interrupting):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # a launcher's echo
            if self.at:
                time.sleep(1.1)
                os.kill(os.getpid(), signal.SIGINT)
            return super().calculate_train_batch_loss(batch)

    for at, error in ((0, SystemExit), (1, KeyboardInterrupt)):
        trainer = make_run(tmp_path / str(at), Twice)
        trainer.at = at
        with pytest.raises(error):
            train(trainer)
        assert len(states(tmp_path / str(at))) == (1 if error is SystemExit else 0)


def test_a_time_limit_saves_and_leaves_with_code_75(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Callback):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            clock[0] += 60

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    limit = TimeLimitCallback(max_minutes=7)  # without a SaveStateCallback too
    with pytest.raises(SystemExit) as left:
        fit(make_trainer(run_dir=tmp_path, callbacks=[Slow, limit]), tiny_data(20))
    assert left.value.code == 75
    assert positions(tmp_path) == ["1.2"]
    fit(make_trainer(run_dir=tmp_path / "none", callbacks=[Slow, TimeLimitCallback(None)]), tiny_data(20))


def test_workers_outlive_a_signal_to_the_whole_group(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
import os, signal, sys
from resumed_runs import Noting, make_run, train
from pathlib import Path
import torch

class Group(Noting):
    def calculate_train_batch_loss(self, batch):
        if len(self.images) == 2:
            os.killpg(0, signal.SIGTERM)
            os.killpg(0, signal.SIGINT)
        return super().calculate_train_batch_loss(batch)

torch.set_num_threads(1)
train(make_run(Path(sys.argv[1]), Group), train_dataloader_kwargs={"num_workers": 2, "prefetch_factor": 1})
""",
        start_new_session=True,
    )
    assert result.returncode == 75, result.stderr
    assert "Traceback" not in result.stderr
    assert positions(tmp_path / "run")[-1] == "0.3"


def test_a_process_with_workers_ends(tmp_path: Path) -> None:
    """Workers that only ignore SIGTERM would be waited for at exit for ever."""
    result = run_script(
        tmp_path,
        """
from resumed_runs import make_run, train
trainer = train(make_run(None, callbacks=()), train_dataloader_kwargs={"num_workers": 2, "persistent_workers": True})
raise SystemExit(3)
""",
    )
    assert result.returncode == 3


# Writes that fail


def full(*args: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_write_that_fails_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Disk(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates in (1, 8):
                monkeypatch.setattr(state_module, "_save", full)
            if trainer.num_updates in (4, 11):
                monkeypatch.undo()

    train(make_run(tmp_path / "run", callbacks=[Disk, every_update()]))
    said = [line for line in capsys.readouterr().out.splitlines() if "No space left" in line]
    assert len(said) == 3 + 3  # updates 1 to 3 and 8 to 10
    assert "none was written yet" in said[0]
    assert "the last one is" in said[3]
    assert "000005_epoch_1_batch_0" in said[3]
    assert "Make room" in said[3]
    assert positions(tmp_path / "run")[:6] == ["0.4", "0.5", "0.6", "0.7", "1.0", "1.4"]


def test_an_interruption_without_room_for_a_state_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = make_run(tmp_path / "run", Interrupting, callbacks=[SaveStateCallback()])
    interrupted.at = 9

    class Disk(Callback):
        def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.epoch == 1:
                monkeypatch.setattr(state_module, "_save", full)

    interrupted.callback_handler.add_callback(Disk)
    with pytest.raises(RuntimeError, match=r"Received SIGTERM.*could not be") as caught:
        train(interrupted)
    (note,) = caught.value.__notes__
    assert "000001_epoch_1_batch_0" in note
    assert positions(tmp_path / "run") == ["1.0"]


def test_what_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"table": np.zeros(3)}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    trainer = make_trainer(run_dir=tmp_path, callbacks=[Odd, SaveStateCallback])
    with refused(TypeError, "Odd", "['table']", "plain values", "numpy.ndarray", "state_dict()"):
        fit(trainer)
    assert trainer.num_updates == 0


# The run folder


def test_auto_starts_anew_where_there_is_nothing(tmp_path: Path) -> None:
    trainer = train(make_run(tmp_path / "new"), resume_from="auto", num_epochs=1)
    assert trainer.num_updates == 7


def test_what_a_run_left_before_its_first_state_is_begun_anew(tmp_path: Path) -> None:
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


def test_a_run_with_states_is_not_begun_anew_by_chance(tmp_path: Path) -> None:
    train(make_run(tmp_path, callbacks=[SaveStateCallback]), num_epochs=1)
    with refused(FileExistsError, "hold no run yet", "'state'"):
        train(make_run(tmp_path))


def test_better_weights_in_the_folder_stay(tmp_path: Path) -> None:
    train(make_run(tmp_path), num_epochs=1)
    config = tmp_path / "best" / "config.json"
    text = json.loads(config.read_text())
    text["best"] |= {"value": -1.0, "epoch": 77}  # a run that was ahead of its last state
    config.write_text(json.dumps(text))
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


def test_a_state_by_its_path_goes_on_in_another_folder_or_in_none(tmp_path: Path) -> None:
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
    with refused(ValueError, "to be whole", "'common.pt' has"):
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
from resumed_runs import Noting, make_run, train
from pathlib import Path

class Killed(Noting):
    def calculate_train_batch_loss(self, batch):
        if len(self.images) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().calculate_train_batch_loss(batch)

train(make_run(Path(sys.argv[1]), Killed), train_dataloader_kwargs={"num_workers": 2})
""",
    )
    assert result.returncode == -signal.SIGKILL
    resumed = train(make_run(tmp_path / "run"), resume_from="auto")  # at once, while its workers may still be there
    assert len(resumed.rates) == 21 - 9


# Another run


def test_a_state_of_another_run_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    train(make_run(tmp_path, recipe={"lr": 5e-3, "aug": {"name": "rand"}}), num_epochs=1)
    before = contents(tmp_path)

    def differs(words: tuple[str, ...], dataset: Any = None, **options: Any) -> None:
        settings = {"recipe": {"lr": 5e-3, "aug": {"name": "rand"}}} | options
        with refused(ValueError, "to be of this run, but got another", *words, "new run in another folder"):
            train(make_run(tmp_path, **settings), train_dataset=dataset, num_epochs=2, resume_from="auto")
        assert contents(tmp_path) == before

    differs(("seed (42 in the state, 7 now)",), seed=7)
    differs(("recipe.aug.name ('rand' in the state, 'none' now)",), recipe={"lr": 5e-3, "aug": {"name": "none"}})
    model = tiny_model(batch_norm=False)
    differs(("tensors.1.weight ([4] in the state, None now)", "tensors.1.bias"), model=model)
    model = tiny_model(num_classes=4)
    differs(("tensors.5.weight[0] (3 in the state, 4 now)",), model=model, num_class=4)
    model = tiny_model()
    differs(("optimizer.kind", "'Lookahead'", "'SGD'"), model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    faster = create_optimizer_v2(model, "lookahead_adamw", lr=1.0, weight_decay=0.01)
    differs(("optimizer.lr (0.005 in the state, 1.0 now)",), model=model, optimizer=faster)


def test_a_state_with_other_classes_is_refused(tmp_path: Path) -> None:
    def named(names: list[str]) -> Any:
        data = tiny_data()
        data.classes = names
        return data

    fit(make_trainer(run_dir=tmp_path, callbacks=[SaveStateCallback]), named(["cat", "dog", "owl"]), num_epochs=1)
    with refused(ValueError, "classes[1] ('dog' in the state, 'owl' now)"):
        fit(make_trainer(run_dir=tmp_path), named(["cat", "owl", "dog"]), resume_from="auto")


def test_a_trainer_with_other_parts_is_refused(tmp_path: Path) -> None:
    fit(make_trainer(run_dir=tmp_path / "plain", callbacks=[SaveStateCallback]), num_epochs=1)
    with refused(ValueError, "state to hold ['ema_model', 'ema_progress']", "got []", "same trainer and options"):
        fit(make_trainer(TimmMixupTrainer, run_dir=tmp_path / "plain", ema_decay=0.1), resume_from="auto")
    trainer = make_trainer(TimmMixupTrainer, run_dir=tmp_path / "ema", ema_decay=0.1, callbacks=[SaveStateCallback])
    fit(trainer)
    with refused(ValueError, "trainer with ['ema_model', 'ema_progress']", "got []", "same trainer and options"):
        fit(make_trainer(run_dir=tmp_path / "ema"), resume_from="auto")


def test_another_batch_of_the_same_update_keeps_images_and_schedule(tmp_path: Path) -> None:
    data = {"train_dataset": Augmented(32), "num_epochs": 2}
    reference = train(make_run(tmp_path / "whole"), gradient_accumulation_steps=2, **data)
    resumed_dir = cut(tmp_path / "whole", 1, tmp_path / "cut")  # after 4 of 8 batches of 4 images
    with pytest.warns(UserWarning, match="batch_size 4 before, 8 now; accumulation 2 before, 1 now") as caught:
        resumed = train(make_run(resumed_dir), per_device_batch_size=8, resume_from="auto", **data)
    assert "Updates and schedule stay those of the global batch of 8" in str(caught[0].message)
    assert "images differs" not in str(caught[0].message)
    assert resumed.rates[0] == reference.rates[2]
    assert torch.equal(resumed.images[0], torch.cat(reference.images[4:6]))


def test_another_size_of_update_goes_on_at_the_same_place_of_data_and_schedule(tmp_path: Path) -> None:
    data = {"train_dataset": Augmented(32), "num_epochs": 2}
    reference = train(make_run(tmp_path / "whole"), **data)  # 8 updates an epoch
    resumed_dir = cut(tmp_path / "whole", 4, tmp_path / "cut")  # after 20 of 32 images
    with pytest.warns(
        UserWarning, match="An update has 8 images instead of 4, at the same place in epoch and schedule"
    ):
        resumed = train(make_run(resumed_dir), per_device_batch_size=8, resume_from="auto", **data)
    assert torch.equal(resumed.images[0], torch.cat(reference.images[4:6]))  # down to whole updates: image 16
    assert resumed.rates[0] == train(make_run(tmp_path / "large"), per_device_batch_size=8, **data).rates[2]
    assert resumed.num_updates == 8


def test_other_data_are_warned_of(tmp_path: Path) -> None:
    train(make_run(tmp_path), num_epochs=1)
    with pytest.warns(UserWarning, match="images 30 before, 28 now.*so does the order of the images"):
        train(make_run(tmp_path), train_dataset=Augmented(28), num_epochs=2, resume_from="auto")


def test_other_versions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_run(tmp_path), num_epochs=1)
    manifest = states(tmp_path)[-1] / "manifest.json"
    text = json.loads(manifest.read_text())
    text["versions"]["torch"] = "1.0"
    manifest.write_text(json.dumps(text))
    train(make_run(tmp_path), num_epochs=2, resume_from="auto")
    assert (
        f"Other versions may round otherwise: torch 1.0 before, {torch.__version__.split('+')[0]}"
        in capsys.readouterr().out
    )


# What a review found


def test_weights_that_are_not_finite_push_out_no_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Breaking(Noting):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            batch_output = super().calculate_train_batch_loss(batch)
            if self.num_updates >= 3:
                batch_output["loss"] = batch_output["loss"] * float("nan")
            return batch_output

    train(make_run(tmp_path, Breaking, callbacks=[every_update(keep=2)]), num_epochs=2)
    assert positions(tmp_path) == ["0.2", "0.3"]
    assert "the loss is not finite" in capsys.readouterr().out


def test_a_stop_that_ends_the_run_stands_before_a_signal_at_the_same_moment(tmp_path: Path) -> None:
    class Both(Callback):
        def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.epoch == 1:
                trainer.request_stop("Enough.")
                os.kill(os.getpid(), signal.SIGTERM)

    def run(**options: Any) -> Any:
        return fit(make_trainer(run_dir=tmp_path, callbacks=[Both, SaveStateCallback]), num_epochs=5, **options)

    assert run().num_updates == 8
    assert run(resume_from="auto").num_updates == 8  # finished


def test_a_state_that_cannot_be_deleted_does_not_count_as_one_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if path.name.startswith("000001") and not path.name.endswith(".unfinished"):
            raise OSError(39, "Directory not empty")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    train(make_run(tmp_path, callbacks=[every_update(keep=1)]), num_epochs=1)
    assert positions(tmp_path) == ["0.1", "1.0"]
    assert "was not" not in capsys.readouterr().out


def test_files_elsewhere_are_not_taken_for_those_of_a_run_that_begins(tmp_path: Path) -> None:
    def run(name: str) -> None:
        callbacks = [CsvHistoryCallback(tmp_path / "shared.csv"), SaveStateCallback]
        train(make_run(tmp_path / name, callbacks=callbacks), num_epochs=1, resume_from="auto")

    run("first")
    with refused(FileExistsError, "shared.csv"):
        run("second")
    run("first")  # its own


@pytest.mark.parametrize("value", [True, 3])
def test_a_resume_from_that_is_no_path_is_refused(value: Any, tmp_path: Path) -> None:
    with refused(TypeError, "resume_from", "'auto' or the path of a state", f"got {value!r}"):
        train(make_run(tmp_path), resume_from=value)


def test_another_schedule_or_other_groups_are_refused(tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        model = tiny_model()
        optimizer = create_optimizer_v2(model, "adamw", lr=5e-3, weight_decay=options.pop("weight_decay", 0.01))
        return train(make_run(tmp_path, model=model, optimizer=optimizer, **options), num_epochs=2, resume_from="auto")

    run()
    with refused(ValueError, "the schedule of the state", "CosineLRScheduler, but got NoneType"):
        run(scheduler_args=None)
    with refused(ValueError, "optimizer.groups[1].weight_decay (0.01 in the state, 0.5 now)"):
        run(weight_decay=0.5)


def test_a_long_list_of_classes_is_cut_in_the_message(tmp_path: Path) -> None:
    def named(last: str) -> Any:
        data = tiny_data()
        data.classes = [*(f"class number {number}" for number in range(900)), last]
        return data

    fit(make_trainer(run_dir=tmp_path, callbacks=[SaveStateCallback]), named("a"), num_epochs=1)
    with refused(ValueError, "classes[900] ('a' in the state, 'b' now)"):
        fit(make_trainer(run_dir=tmp_path), named("b"), resume_from="auto")
    data = tiny_data()
    data.classes = ["one", "two"]
    with pytest.raises(ValueError, match="in the state") as caught:
        fit(make_trainer(run_dir=tmp_path), data, resume_from="auto")
    assert len(str(caught.value)) < 700


# Arguments


@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_updates", "keep", "milestone_every_n_epochs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_a_count_below_one_is_refused(name: str, value: Any) -> None:
    with refused(ValueError, name, "at least 1", f"got {value!r}"):
        SaveStateCallback(**{name: value})


def test_keeping_none_is_refused() -> None:
    with refused(ValueError, "keep", "at least 1", "got None"):
        SaveStateCallback(keep=None)


@pytest.mark.parametrize("value", [0, -1.0, "2"])
def test_minutes_that_are_not_positive_are_refused(value: Any) -> None:
    with refused(ValueError, "every_minutes", "positive", f"got {value!r}"):
        SaveStateCallback(every_minutes=value)
    with refused(ValueError, "max_minutes", "positive", f"got {value!r}"):
        TimeLimitCallback(value)


def test_states_need_a_folder() -> None:
    for callback in (SaveStateCallback, TimeLimitCallback(1)):
        with refused(ValueError, "Callback to have a folder", "run_dir", "Pass run_dir to the trainer"):
            make_trainer(callbacks=[callback])
    with refused(ValueError, "run_dir to be given beside resume_from='auto'", "got None", "path of a state"):
        fit(make_trainer(), resume_from="auto")


def test_a_path_that_is_no_state_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    (tmp_path / "upstreams").mkdir()
    (tmp_path / "upstreams/trainer_metadata.pt").write_bytes(b"")
    before = contents(tmp_path)
    for path in (tmp_path / "upstreams", tmp_path / "nothing"):
        with refused(ValueError, "folder with a state", "'manifest.json'", f"got {str(path)!r}"):
            fit(make_trainer(run_dir=tmp_path / "run"), resume_from=path)
    assert contents(tmp_path) == before


def test_a_model_without_running_loss_or_buffers_is_saved_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    fit(make_trainer(model=model, run_dir=tmp_path, callbacks=[SaveStateCallback]), num_epochs=1)
    assert outcome(tmp_path)["state"]["rank_0.pt"]["buffers"] == {}


def test_a_training_process_of_multiprocessing_ends(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
import multiprocessing
from resumed_runs import make_run, train

def work():
    global trainer
    loader = {"num_workers": 1, "persistent_workers": True}
    trainer = train(make_run(None, callbacks=()), train_dataloader_kwargs=loader)
    raise KeyError("the user's")

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    raise SystemExit(0 if child.exitcode == 1 else 9)
""",
    )
    assert result.returncode == 0


def test_models_with_extra_state_and_optimizers_without_a_rate_train(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"n": 1}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    model = nn.Sequential(nn.Flatten(), Extra(192, 3))
    fit(make_trainer(model=model, run_dir=tmp_path / "extra", callbacks=[SaveStateCallback]), num_epochs=1)
    model = tiny_model()
    optimizer = create_optimizer_v2(model, "adafactor", lr=None)
    trainer = make_trainer(model=model, optimizer=optimizer, run_dir=tmp_path / "rate", callbacks=[SaveStateCallback])
    fit(trainer, num_epochs=1)
    fit(trainer, num_epochs=2, resume_from="auto")


def test_upstreams_early_stopping_finishes_the_run_too(tmp_path: Path) -> None:
    from pytorch_accelerated.callbacks import EarlyStoppingCallback as Upstreams

    def run(**options: Any) -> Any:
        stopping = Upstreams(early_stopping_patience=2, watch_metric="train_loss_epoch", early_stopping_threshold=100.0)
        return fit(make_trainer(run_dir=tmp_path, callbacks=[stopping, SaveStateCallback]), num_epochs=8, **options)

    updates = run().num_updates
    assert updates < 32
    assert run(resume_from="auto").num_updates == updates


def test_an_interruption_without_a_folder_is_an_error_in_words() -> None:
    class Asking(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_stop("Enough.", interrupted=True)

    with refused(RuntimeError, "a state to be written before leaving (Enough.)", "could not be"):
        fit(make_trainer(callbacks=[Asking]))


def test_optimizer_states_keep_their_own_type(tmp_path: Path) -> None:
    def run(run_dir: Path, **options: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).to(torch.bfloat16)
        data = tiny_data(30)
        data.tensors = (data.tensors[0].to(torch.bfloat16), data.tensors[1])
        optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)  # keeps a float32 product of momenta
        trainer = make_trainer(model=model, optimizer=optimizer, run_dir=run_dir, callbacks=[every_update()])
        return fit(trainer, data, **options)

    run(tmp_path / "whole")
    run(cut(tmp_path / "whole", 4, tmp_path / "cut"), resume_from="auto")
    assert same_outcome(tmp_path / "whole", tmp_path / "cut") is None


def test_a_resume_mends_what_a_kill_at_the_end_has_left(tmp_path: Path) -> None:
    train(make_run(tmp_path), num_epochs=1)
    root = tmp_path / "state"
    newest = states(tmp_path)[-1].name
    (root / "latest").write_text("000001_epoch_0_batch_1\n")  # killed between the state's rename and this
    (root / "000000_epoch_0_batch_0.unfinished").mkdir()  # killed while an old state was deleted
    train(make_run(tmp_path), num_epochs=1, resume_from="auto")  # already finished: nothing is written
    assert states(tmp_path)[-1].name == newest
    assert (root / "latest").read_text() == f"{newest}\n"
    assert not list(root.glob("*.unfinished"))

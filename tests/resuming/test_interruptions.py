"""Signals and time limits: a state is written, and the process leaves with code 75."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from refusal import refused
from resumed_runs import Interrupting, full_disk, make_run, positions, run_script, same_outcome, settle, states, train
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel.callbacks import Callback, CsvHistoryCallback, SaveStateCallback, TimeLimitCallback
from timm_accel.states import folder as state_module


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


def test_signals_are_left_alone_where_no_states_are_saved(tmp_path: Path) -> None:
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
    )
    assert result.returncode == 75, result.stderr
    assert "Traceback" not in result.stderr
    assert positions(tmp_path / "run")[-1] == "0.3"


def test_a_process_with_workers_ends(tmp_path: Path) -> None:
    """Workers that only ignore SIGTERM would be waited for at exit forever."""
    result = run_script(
        tmp_path,
        """
from resumed_runs import make_run, train
trainer = train(make_run(None, callbacks=()), train_dataloader_kwargs={"num_workers": 2, "persistent_workers": True})
raise SystemExit(3)
""",
    )
    assert result.returncode == 3


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


def test_an_interruption_without_room_for_a_state_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = make_run(tmp_path / "run", Interrupting, callbacks=[SaveStateCallback()])
    interrupted.at = 9

    class Disk(Callback):
        def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.epoch == 1:
                settle(trainer)
                monkeypatch.setattr(state_module, "_save", full_disk)

    interrupted.callback_handler.add_callback(Disk)
    with pytest.raises(RuntimeError, match=r"Received SIGTERM.*could not be") as caught:
        train(interrupted)
    (note,) = caught.value.__notes__
    assert "000001_epoch_1_batch_0" in note
    assert positions(tmp_path / "run") == ["1.0"]


def test_an_interruption_without_a_folder_is_an_error_in_words() -> None:
    class Asking(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_stop("Enough.", interrupted=True)

    with refused(RuntimeError, "a state to be written before the exit (Enough.)", "could not be"):
        fit(make_trainer(callbacks=[Asking]))

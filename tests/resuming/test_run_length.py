"""How long a run is, and when one that is resumed is finished."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from refusal import contents, refused
from resumed_runs import cut, make_run, positions, same_outcome, states, train
from tiny_runs import fit, make_trainer, same_weights, tiny_data

from timm_accel.callbacks import Callback, EarlyStoppingCallback, SaveStateCallback


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
def test_a_longer_run_continues_with_the_schedule_of_its_length(
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
    with refused(ValueError, "num_epochs to be at least 3", "has reached that epoch", "got 2", "counts the whole run"):
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
    assert longer.num_updates == 25  # two more without an improvement: the count continued
    assert stopping.epochs_without == 4


def test_upstreams_early_stopping_finishes_the_run_too(tmp_path: Path) -> None:
    from pytorch_accelerated.callbacks import EarlyStoppingCallback as Upstreams

    def run(**options: Any) -> Any:
        stopping = Upstreams(early_stopping_patience=2, watch_metric="train_loss_epoch", early_stopping_threshold=100.0)
        return fit(make_trainer(run_dir=tmp_path, callbacks=[stopping, SaveStateCallback]), num_epochs=8, **options)

    updates = run().num_updates
    assert updates < 32
    assert run(resume_from="auto").num_updates == updates


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

"""The speed of an epoch: its figures, and that histories, states and weights do not depend on it."""

import csv
import time
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from history_rows import without_speed
from pytorch_accelerated.callbacks import StepBasedEvaluationCallback
from resumed_runs import cut, outcome, same_outcome, states
from terminals import Clock
from tiny_runs import fit, make_trainer, tiny_data
from torch.utils.data import Dataset

from timm_accel.callbacks import Callback, CsvHistoryCallback, SaveStateCallback
from timm_accel.states import speed as module
from timm_accel.states.folder import open_state
from timm_accel.states.running_mean import RunningMean
from timm_accel.states.speed import COLUMNS, Speed


class Ticking(Callback):
    """Lets a second pass in each training step, 10 in an evaluation step, and notes the speed after each epoch."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seen = clock, []

    def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
        self.clock.now += 1.0

    def on_eval_step_start(self, trainer: Any, **kwargs: Any) -> None:
        self.clock.now += 10.0

    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        run = trainer.current_run()
        self.seen.append([(each.images, each.seconds) for each in (run.speed, run.evaluation_speed)])


class Slow(Dataset):
    """Images that take half a second each."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock, self.data = clock, tiny_data(count)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.clock.now += 0.5
        return self.data[index]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    found.replace(monkeypatch, module)
    return found


def test_an_epoch_counts_its_images_and_its_seconds_alone(clock: Clock) -> None:
    ticking = Ticking(clock)
    trainer = fit(make_trainer(callbacks=[ticking]), tiny_data(14), tiny_data(6), num_epochs=2)
    assert ticking.seen == [[(14, 4.0), (6, 20.0)]] * 2
    outside = trainer.current_run()
    assert (outside.speed.images, outside.evaluation_speed.images) == (0, 0)
    assert isnan(outside.speed.images_per_second)
    assert isnan(outside.evaluation_speed.images_per_second)


def test_the_share_of_waiting_is_that_of_the_loader(clock: Clock) -> None:
    """16 images of 0.5 s and 4 steps of 1 s."""
    shares = []

    class Noting(Callback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            speed = trainer.current_run().speed
            shares.append((speed.data_wait, speed.images_per_second))

    fit(make_trainer(callbacks=[Ticking(clock), Noting()]), Slow(clock, 16), num_epochs=2)
    assert shares == [(8 / 12, 16 / 12)] * 2


def test_an_evaluation_within_an_epoch_is_not_its_time(clock: Clock) -> None:
    ticking = Ticking(clock)
    within = StepBasedEvaluationCallback(2)
    fit(make_trainer(callbacks=[ticking, within]), tiny_data(16), tiny_data(8), num_epochs=1)
    assert ticking.seen == [[(16, 4.0), (8, 20.0)]]


def test_every_rank_counts_for_all(clock: Clock) -> None:
    class TwoRanks(Accelerator):
        num_processes = 2

    mean = RunningMean(torch.device("cpu"))
    mean.update(torch.ones(()), 5)  # before a resume
    speed = Speed(mean, TwoRanks())
    clock.now = 4.0
    mean.update(torch.ones(()), 6)
    assert (speed.images, speed.images_per_second) == (12, 3.0)
    speed.end()
    clock.now = 100.0
    assert speed.seconds == 4.0


def test_the_peak_of_memory_is_that_of_the_process_on_a_cpu() -> None:
    speed = Speed(RunningMean(torch.device("cpu")), Accelerator())
    before = speed.peak_memory_gb
    assert 0.1 < before < 1000
    block = torch.ones(int(before * 1e9) // 4 + 50_000_000)  # more than all so far
    assert speed.peak_memory_gb >= before + 0.15
    del block


def test_the_history_file_has_the_speed_of_each_epoch(clock: Clock, tmp_path: Path) -> None:
    trainer = fit(make_trainer(callbacks=[Ticking(clock), CsvHistoryCallback], run_dir=tmp_path), num_epochs=2)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert list(rows[0]) == ["epoch", "lr", "train_loss_epoch", *COLUMNS]
    assert [(row["images_per_second"], row["data_wait"]) for row in rows] == [("4.0", "0.0")] * 2
    assert all(float(row["peak_memory_gb"]) > 0.1 for row in rows)
    assert not {*COLUMNS} & {*trainer.run_history.get_metric_names()}


def run(run_dir: Path, **options: Any) -> None:
    """Train for 4 epochs, with a state after each, and another speed each time."""
    trainer = make_trainer(callbacks=[CsvHistoryCallback, SaveStateCallback(keep=9, keep_when_done=9)], run_dir=run_dir)
    fit(trainer, num_epochs=4, **options)


def test_a_resumed_run_keeps_the_speed_of_earlier_epochs_and_all_else_to_the_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    before = list(csv.DictReader((tmp_path / "whole/history.csv").open()))
    resumed = cut(tmp_path / "whole", 1, tmp_path / "cut")
    time.sleep(0.01)
    run(resumed, resume_from="auto")
    after = list(csv.DictReader((resumed / "history.csv").open()))
    assert after[:2] == before[:2]
    assert all(row["images_per_second"] for row in after)
    assert after != before
    assert same_outcome(tmp_path / "whole", resumed) is None


def test_no_state_holds_a_time(tmp_path: Path) -> None:
    run(tmp_path)
    rows = open_state(states(tmp_path)[-1]).load("common.pt")["callbacks"]["CsvHistoryCallback"]["rows"]
    assert [list(row) for row in rows] == [["epoch", "lr", "train_loss_epoch"]] * 4
    assert outcome(tmp_path)["files"]["history.csv"] == without_speed(tmp_path / "history.csv")


@pytest.mark.parametrize("garbage", ["", "epoch\n1\n", "a,b\n", "\x00", "epoch,images_per_second\n1,=cmd()\n"])
def test_a_history_file_that_was_changed_loses_the_speed_and_nothing_else(garbage: str, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    resumed = cut(tmp_path / "whole", 1, tmp_path / "cut")
    (resumed / "history.csv").write_text(garbage)
    run(resumed, resume_from="auto")
    rows = list(csv.DictReader((resumed / "history.csv").open()))
    assert [row["images_per_second"] for row in rows[:2]] == ["", ""]
    assert same_outcome(tmp_path / "whole", resumed) is None


def test_a_metric_of_the_same_name_is_not_lost(tmp_path: Path) -> None:
    class Recording(Callback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.run_history.update_metric("data_wait", 7.5)

    fit(make_trainer(callbacks=[Recording, CsvHistoryCallback], run_dir=tmp_path))
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["data_wait"] for row in rows] == ["7.5"] * 2

"""Metrics that are not one number: printed, written, saved, and refused where one number is needed."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel import LoopTrainer, TimmTrainer
from timm_accel.callbacks import (
    CsvHistoryCallback,
    EarlyStoppingCallback,
    PrintMetricsCallback,
    SaveBestCallback,
    SaveStateCallback,
)
from timm_accel.callbacks.recorded_metrics import one_number, plain_value, readable


class Opaque:
    def __str__(self) -> str:
        return "an\n object"


VALUES = {
    "text": ("two\nlines", "two lines"),
    "nothing": (None, "None"),
    "flag": (True, "True"),
    "integer": (3, "3.0000"),
    "scalar": (torch.tensor(0.25), "0.2500"),
    "one": (torch.tensor([0.25]), "[0.2500]"),
    "several": (torch.tensor([[0.5, 1.0], [2.0, 3.0]]), "[[0.5000, 1.0000], [2.0000, 3.0000]]"),
    "many": (torch.zeros(30), "[" + "0.0000, " * 8 + "… 22 more]"),
    "array": (np.array([1.5, 2.5]), "[1.5000, 2.5000]"),
    "point": (np.array(1.5), "1.5000"),
    "number": (np.float32(0.5), "0.5000"),
    "flags": (np.array([True, False]), "[True, False]"),
    "pairs": ({"cat": torch.tensor(0.5), "dog": [1, "x"]}, "{cat: 0.5000, dog: [1.0000, x]}"),
    "opaque": (Opaque(), "an object"),
    "empty": ({}, "{}"),
}


class Recording(LoopTrainer):
    """Records one of every kind of value in each epoch."""

    def eval_epoch_end(self) -> None:
        super().eval_epoch_end()
        for name, (value, _) in VALUES.items():
            self.run_history.update_metric(name, value)


@pytest.mark.parametrize("name", VALUES)
def test_every_value_is_readable_in_one_line(name: str) -> None:
    value, shown = VALUES[name]
    assert readable(value) == shown


def test_every_value_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_trainer(Recording, callbacks=[PrintMetricsCallback]), tiny_data(), tiny_data(4), num_epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for line in lines:
        assert all(f"  {name} {shown}" in line for name, (_, shown) in VALUES.items())


def test_values_of_the_ema_model_are_printed_beside_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    class Both(LoopTrainer):
        def eval_epoch_end(self) -> None:
            super().eval_epoch_end()
            self.run_history.update_metric("each", torch.tensor([0.5, 1.0]))
            self.run_history.update_metric("ema_model_each", {"a": 1})

    fit(make_trainer(Both, callbacks=[PrintMetricsCallback]), tiny_data(), tiny_data(4), num_epochs=1)
    assert "each [0.5000, 1.0000] (ema {a: 1.0000})" in capsys.readouterr().out


def test_every_value_is_in_the_csv_history(tmp_path: Path) -> None:
    fit(make_trainer(Recording, callbacks=[CsvHistoryCallback], run_dir=tmp_path), tiny_data(), tiny_data(4))
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        assert (row["scalar"], row["one"], row["nothing"], row["text"]) == ("0.25", "[0.25]", "", "two\nlines")
        assert (row["several"], row["array"]) == ("[[0.5, 1.0], [2.0, 3.0]]", "[1.5, 2.5]")
        assert row["pairs"] == "{'cat': 0.5, 'dog': [1, 'x']}"


def test_a_run_with_every_value_is_saved_and_resumed(tmp_path: Path) -> None:
    def run(num_epochs: int, **options: Any) -> Any:
        callbacks = [SaveStateCallback, PrintMetricsCallback]
        trainer = make_trainer(Recording, callbacks=callbacks, run_dir=tmp_path)
        return fit(trainer, tiny_data(), tiny_data(4), num_epochs=num_epochs, **options)

    run(1)
    history = run(2, resume_from="auto").run_history
    for name, (value, shown) in VALUES.items():
        first, second = history.get_metric_values(name)
        assert readable(first) == shown
        assert second is value or second == value
    assert torch.equal(history.get_metric_values("several")[0], VALUES["several"][0])  # tensors stay tensors


@pytest.mark.parametrize("name", ["text", "nothing", "several", "array", "pairs", "opaque"])
def test_a_metric_that_is_not_one_number_cannot_be_watched(name: str, tmp_path: Path) -> None:
    shown = " ".join(VALUES[name][1].split())
    stopping = EarlyStoppingCallback(name)
    with refused(ValueError, "Expected watch_metric to be a metric of one number", repr(name), shown):
        fit(make_trainer(Recording, callbacks=[stopping]), tiny_data(), tiny_data(4))
    saving = SaveBestCallback(name)
    with refused(ValueError, "Expected watch_metric to be a metric of one number", repr(name), shown):
        fit(make_trainer(Recording, callbacks=[saving], run_dir=tmp_path), tiny_data(), tiny_data(4))


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_a_scheduler_cannot_follow_a_metric_that_is_not_one_number() -> None:
    class Listed(TimmTrainer, Recording):
        pass

    plateau = {"sched": "plateau", "warmup_epochs": 0}
    with refused(ValueError, "Expected scheduler_metric to be a metric of one number", "'several'"):
        fit(make_trainer(Listed, scheduler_args=plateau, scheduler_metric="several"), tiny_data(), tiny_data(4))


@pytest.mark.parametrize("name", ["scalar", "one", "number", "point", "integer", "flag"])
def test_one_number_in_any_form_can_be_watched(name: str) -> None:
    value = one_number("watch_metric", name, VALUES[name][0])
    assert type(value) is float
    assert value == float(VALUES[name][0])


def test_plain_values_hold_no_tensor_and_no_array() -> None:
    given = {np.int64(1): (torch.tensor([1, 2]), np.float64(0.5)), "set": {np.int32(3)}}
    assert plain_value(given) == {1: [[1, 2], 0.5], "set": [3]}

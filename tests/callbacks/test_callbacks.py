"""Callbacks: what they keep, write and stop, and that they change no weights."""

import csv
import json
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pytorch_accelerated.callbacks import TrainerCallback as UpstreamCallback
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.callbacks import (
    DEFAULT_CALLBACKS,
    Callback,
    CsvHistoryCallback,
    EarlyStoppingCallback,
    SaveBestCallback,
)
from timm_accel.mixins import ModelEmaMixin


def with_metric(values: list[float], average: list[float] | None = None) -> type[LoopTrainer]:
    """A trainer that records these values as ``score``, one an epoch, and sets a weight to the epoch's number."""

    class Scripted(ModelEmaMixin):
        def training_run_epoch_end(self) -> None:
            assert self.epoch is not None
            self.run_history.update_metric("score", values[self.epoch])
            if average is not None:
                self.run_history.update_metric("ema_model_score", average[self.epoch])
            for module in self.evaluated_models().values():
                torch.nn.init.constant_(module[-1].bias, self.epoch + 1)
            super().training_run_epoch_end()

    return Scripted


def kept(folder: Path) -> tuple[int, float]:
    """The epoch that the config names, and the one that the weights hold."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    return config["best"]["epoch"], load_file(folder / "model.safetensors")["5.bias"][0].item()


@pytest.mark.parametrize(
    ("values", "greater", "epoch"),
    [
        ([0.1, 0.3, 0.2], True, 2),
        ([0.3, 0.1, 0.2], False, 2),
        ([0.3, 0.3, 0.1], True, 1),  # a tie keeps the earlier
        ([nan, 0.1, 0.2], True, 3),
        ([0.1, nan, nan], True, 1),
        ([nan, inf, 0.5], False, 3),
        ([inf, 0.1, nan], True, 2),
    ],
)
def test_the_best_epoch_is_saved(values: list[float], greater: bool, epoch: int, tmp_path: Path) -> None:
    best = SaveBestCallback("score", greater_is_better=greater)
    trainer = make_trainer(with_metric(values), callbacks=[best], run_dir=tmp_path, ema_decay=0.5)
    fit(trainer, num_epochs=3)
    assert kept(tmp_path / "best") == (epoch, epoch)
    assert not (tmp_path / "best_ema").exists()  # its metric was never recorded


def test_model_and_ema_model_are_saved_apart(tmp_path: Path) -> None:
    trainer = make_trainer(
        with_metric([0.1, 0.3, 0.2], [0.3, 0.2, 0.1]),
        callbacks=[SaveBestCallback("score")],
        run_dir=tmp_path,
        ema_decay=0.5,
    )
    fit(trainer, num_epochs=3)
    assert kept(tmp_path / "best") == (2, 2)
    assert kept(tmp_path / "best_ema") == (1, 1)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["config.json", "model.safetensors"]


def test_a_metric_that_is_never_finite_saves_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(with_metric([nan, nan]), callbacks=[SaveBestCallback("score")], run_dir=tmp_path)
    fit(trainer)
    assert not (tmp_path / "best").exists()


def test_timm_alone_gives_the_same_logits_for_model_and_ema_model(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3, in_chans=3)
    trainer = make_trainer(
        TimmMixupTrainer,
        model,
        loss_func=torch.nn.CrossEntropyLoss(),
        num_class=3,
        ema_decay=0.1,
        callbacks=[SaveBestCallback("eval_loss_epoch", greater_is_better=False)],
        run_dir=tmp_path,
    )
    data = torch.utils.data.TensorDataset(torch.randn(12, 3, 32, 32), torch.arange(12) % 3)
    fit(trainer, data, data)
    images = torch.randn(4, 3, 32, 32)
    for folder, module in (("best", trainer.model), ("best_ema", trainer.ema_model.module)):
        alone = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True).eval()
        assert torch.equal(alone(images), module.eval()(images))


def test_a_model_that_timm_cannot_rebuild_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(TimmTrainer, num_classes=3, callbacks=[SaveBestCallback("accuracy")], run_dir=tmp_path)
    fit(trainer, eval_dataset=tiny_data(6))
    config = json.loads((tmp_path / "best" / "config.json").read_text())
    assert config["architecture"] is None
    assert "cannot rebuild Sequential" in config["note"]
    plain = tiny_model()
    from safetensors.torch import load_file

    plain.load_state_dict(load_file(tmp_path / "best" / "model.safetensors"))


def test_history_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(TimmTrainer, num_classes=3, callbacks=[CsvHistoryCallback], run_dir=tmp_path)
    fit(trainer, eval_dataset=tiny_data(6), num_epochs=3)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for name in ("train_loss_epoch", "eval_loss_epoch", "accuracy", "f1_macro"):
        assert [float(row[name]) for row in rows] == trainer.run_history.get_metric_values(name)
    assert [float(row["lr"]) for row in rows] == [0.1] * 3


def test_history_takes_in_a_metric_that_comes_later(tmp_path: Path) -> None:
    class Late(LoopTrainer):
        def training_run_epoch_end(self) -> None:
            super().training_run_epoch_end()
            if self.epoch == 1:
                self.run_history.update_metric("late", 0.5)

    fit(make_trainer(Late, callbacks=[CsvHistoryCallback], run_dir=tmp_path), num_epochs=3)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["late"] for row in rows] == ["", "0.5", ""]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]


def test_early_stopping_waits_for_its_patience(capsys: pytest.CaptureFixture[str]) -> None:
    values = [0.5, 0.6, 0.6, 0.59, 0.9]
    stop = EarlyStoppingCallback("score", greater_is_better=True, patience=2)
    trainer = make_trainer(with_metric(values), callbacks=[stop], ema_decay=0.5)
    fit(trainer, num_epochs=5)
    assert trainer.run_history.get_metric_values("score") == values[:4]
    assert "score has not improved on 0.6 for 2 epochs" in capsys.readouterr().out


def test_early_stopping_counts_small_changes_as_none() -> None:
    stop = EarlyStoppingCallback("score", greater_is_better=False, patience=1, min_delta=0.1)
    trainer = make_trainer(with_metric([1.0, 0.8, 0.75, 0.0]), callbacks=[stop], ema_decay=0.5)
    fit(trainer, num_epochs=4)
    assert trainer.run_history.get_metric_values("score") == [1.0, 0.8, 0.75]


def test_callbacks_change_no_weights(tmp_path: Path) -> None:
    plain = fit(make_trainer(TimmTrainer, num_classes=3), eval_dataset=tiny_data(6))
    callbacks = [*DEFAULT_CALLBACKS, SaveBestCallback, CsvHistoryCallback, EarlyStoppingCallback]
    watched = make_trainer(TimmTrainer, num_classes=3, callbacks=callbacks, run_dir=tmp_path)
    assert same_weights(plain.model, fit(watched, eval_dataset=tiny_data(6)).model)


def test_one_line_per_epoch_shows_model_and_ema_model(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(
        TimmMixupTrainer,
        num_class=3,
        ema_decay=0.5,
        loss_func=torch.nn.CrossEntropyLoss(),
        callbacks=DEFAULT_CALLBACKS,
    )
    fit(trainer, eval_dataset=tiny_data(6))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    history = trainer.run_history
    for number, line in enumerate(lines):
        for name in ("eval_loss_epoch", "accuracy", "f1_macro"):
            model, average = (history.get_metric_values(key)[number] for key in (name, f"ema_model_{name}"))
            assert f"{name.removesuffix('_epoch')} {model:.4f} (ema {average:.4f})" in line
        assert line.startswith(f"epoch {number + 1}/2  lr 0.1  train_loss ")
    assert len(lines) == 2


def test_an_event_that_upstream_does_not_know_passes_its_callbacks_by() -> None:
    class Old(UpstreamCallback):
        pass

    seen = []

    class New(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            seen.append((trainer.num_updates, all(p.grad is None for p in trainer.model.parameters())))

    fit(make_trainer(callbacks=[Old, New]), num_epochs=1)
    assert seen == [(number, True) for number in (1, 2, 3, 4)]


def test_early_stopping_counts_each_run_from_the_start() -> None:
    stopping = EarlyStoppingCallback("train_loss_epoch", patience=2, min_delta=100.0)
    trainer = make_trainer(callbacks=[stopping])
    for _ in range(2):
        fit(trainer, num_epochs=8)
        assert len(list(trainer.run_history.get_metric_values("train_loss_epoch"))) == 3  # the first, and two more

"""Evaluations come every n epochs and after the last one; nothing else of a run changes."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from history_rows import without_speed
from refusal import refused
from tiny_runs import fit, make_trainer, same_weights, tiny_data
from torch.utils.data import IterableDataset

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.callbacks import CsvHistoryCallback, EarlyStoppingCallback, SaveBestCallback, SaveStateCallback


def epochs_with(trainer: Any, metric: str, rows: list[str]) -> list[int]:
    column = rows[0].split(",").index(metric)
    return [int(row.split(",")[0]) for row in rows[1:] if row.split(",")[column]]


def run(folder: Path, every: int, num_epochs: int = 5, **options: Any) -> tuple[Any, list[str]]:
    trainer = make_trainer(
        TimmTrainer, num_classes=3, callbacks=[CsvHistoryCallback], run_dir=folder, evaluate_every_n_epochs=every
    )
    fit(trainer, eval_dataset=tiny_data(6), num_epochs=num_epochs, **options)
    return trainer, (folder / "history.csv").read_text().splitlines()


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (5, [5]), (9, [5])])
def test_every_nth_epoch_and_the_last_one_are_evaluated(every: int, epochs: list[int], tmp_path: Path) -> None:
    trainer, rows = run(tmp_path, every)
    assert epochs_with(trainer, "accuracy", rows) == epochs_with(trainer, "eval_loss_epoch", rows) == epochs
    assert epochs_with(trainer, "train_loss_epoch", rows) == [1, 2, 3, 4, 5]


def test_the_epoch_in_which_a_run_is_cut_is_evaluated(tmp_path: Path) -> None:
    trainer, rows = run(tmp_path, 4, max_num_train_steps=6)  # 4 updates an epoch
    assert epochs_with(trainer, "accuracy", rows) == [2]


class TooLong(IterableDataset):
    """Gives twice as many images as its length says."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        return iter([tiny_data()[number] for number in range(16)])


def test_the_epoch_in_which_a_loader_of_a_wrong_length_reaches_the_last_update_is_evaluated(tmp_path: Path) -> None:
    trainer, rows = run(tmp_path, 9, train_dataset=TooLong(), max_num_train_steps=7)  # 4 epochs by its length
    assert trainer.num_updates == 7
    assert epochs_with(trainer, "accuracy", rows) == [2]


def test_a_schedule_that_follows_no_metric_needs_no_evaluation() -> None:
    trainer = make_trainer(TimmTrainer, num_classes=3, scheduler_args={"sched": "cosine"}, evaluate_every_n_epochs=2)
    fit(trainer, eval_dataset=tiny_data(6), create_scheduler_fn=trainer.create_scheduler)
    assert trainer.num_updates == 8


def test_the_weights_do_not_depend_on_the_evaluations(tmp_path: Path) -> None:
    often, _ = run(tmp_path / "often", 1)
    seldom, _ = run(tmp_path / "seldom", 5)
    assert same_weights(often.model, seldom.model)


def test_best_weights_and_patience_judge_evaluated_epochs_alone(tmp_path: Path) -> None:
    class Scripted(LoopTrainer):
        def eval_epoch_end(self) -> None:
            seen.append(self.epoch)
            self.run_history.update_metric("score", -float(len(seen)))
            super().eval_epoch_end()

    seen: list[Any] = []
    best = SaveBestCallback("score", greater_is_better=False)
    stopping = EarlyStoppingCallback("score", True, patience=2)
    options: dict[str, Any] = {"callbacks": [best, stopping], "run_dir": tmp_path, "evaluate_every_n_epochs": 2}
    trainer = fit(make_trainer(Scripted, **options), eval_dataset=tiny_data(6), num_epochs=20)
    assert seen == [1, 3, 5]  # the first is the best, and two more are not better
    assert trainer.num_updates == 6 * 4
    assert best.best["model"] == {"metric": "score", "value": -3.0, "epoch": 6}


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_evaluates_the_same_epochs(cut: int, tmp_path: Path) -> None:
    class Interrupting(TimmMixupTrainer):
        def training_run_epoch_end(self) -> None:
            super().training_run_epoch_end()
            if self.epochs_done + 1 == cut and resume is None:
                self.request_stop("Cut.", interrupted=True)

    rows: dict[str, bytes] = {}
    for name in ("whole", "cut"):
        for resume in ["auto"] if name == "whole" else [None, "auto"]:
            callbacks = [CsvHistoryCallback, SaveStateCallback()]
            options: dict[str, Any] = {"num_class": 3, "callbacks": callbacks, "ema_decay": 0.5}
            trainer = make_trainer(Interrupting, run_dir=tmp_path / name, evaluate_every_n_epochs=2, **options)
            with pytest.raises(SystemExit, match="75") if resume is None else nullcontext():
                fit(trainer, eval_dataset=tiny_data(6), num_epochs=5, resume_from=resume)
        rows[name] = without_speed(tmp_path / name / "history.csv")
    assert rows["cut"] == rows["whole"]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", None])
def test_an_interval_that_is_none_is_refused(wrong: Any) -> None:
    with refused(ValueError, "evaluate_every_n_epochs to be a number of epochs", f"got {wrong!r}", "default is 1"):
        make_trainer(evaluate_every_n_epochs=wrong)


def plateau(trainer: Any) -> Any:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(trainer)


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["timm", "torch"])
def test_a_schedule_that_follows_the_evaluation_needs_each_epoch(kind: str) -> None:
    options: dict[str, Any] = {"scheduler_args": {"sched": "plateau", "warmup_epochs": 0}} if kind == "timm" else {}
    for metric in ("eval_loss_epoch", "accuracy"):
        trainer = make_trainer(
            TimmTrainer, num_classes=3, scheduler_metric=metric, evaluate_every_n_epochs=2, **options
        )
        create = trainer.create_scheduler if kind == "timm" else plateau
        with refused(ValueError, "evaluate_every_n_epochs to be 1", repr(metric), "got 2", "'train_loss_epoch'"):
            fit(trainer, eval_dataset=tiny_data(6), create_scheduler_fn=create)
    trainer = make_trainer(
        TimmTrainer, num_classes=3, scheduler_metric="train_loss_epoch", evaluate_every_n_epochs=2, **options
    )
    create = trainer.create_scheduler if kind == "timm" else plateau
    assert fit(trainer, eval_dataset=tiny_data(6), create_scheduler_fn=create).num_updates == 8

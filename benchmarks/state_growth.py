"""Measure what a state costs late in a long run: 12 metrics of 20,000 epochs, and with 1,001 kept states.

python -m benchmarks state_growth --epochs 20000 --states 1001
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.pairs import spread
from benchmarks.tables import Table
from timm_accel import TimmTrainer
from timm_accel.callbacks import Callback, CsvHistoryCallback, SaveStateCallback
from timm_accel.states.folder import state_folders

METRICS = [f"metric_{number}" for number in range(12)]


class Measuring(Callback):
    """Records the metrics of many epochs after the first update, and saves states as they are after some of them."""

    def __init__(self, at: list[int], saves: int, states: int) -> None:
        self.at, self.saves, self.states = at, saves, states
        self.rows: list[list[str]] = []

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        run, history = trainer.current_run(), trainer.run_history
        csv = next(each for each in trainer.callback_handler if isinstance(each, CsvHistoryCallback))
        for epoch in range(1, max(self.at) + 1):
            for number, name in enumerate(METRICS):
                history.update_metric(name, 1 / (epoch + number))
            csv.on_training_run_epoch_end(trainer)
            history._increment_epoch()
            end_epoch(run, epoch)
            if epoch in self.at:
                self.save(f"after {epoch:,} epochs", trainer)
        for folder in state_folders(trainer.run_dir / "state")[1:]:
            shutil.rmtree(folder)
        trainer.keep_states = self.states
        newest = state_folders(trainer.run_dir / "state")[0]
        for number in range(100_000, 100_000 + self.states):
            shutil.copytree(newest, newest.with_name(f"{number}_epoch_1_batch_0"))
        self.save(f"after {max(self.at):,} epochs, {self.states:,} states kept", trainer)

    def save(self, when: str, trainer: Any) -> None:
        run, seconds, own = trainer.current_run(), [], 0
        for _ in range(self.saves):
            began = time.perf_counter()
            run.checkpointer.save(run, waits=True)
            seconds.append(time.perf_counter() - began)
            newest = state_folders(trainer.run_dir / "state")[0]
            own = sum(file.stat().st_size for file in newest.iterdir() if file.stat().st_nlink == 1)
        self.rows.append([when, f"{own:,}", spread([1000 * each for each in seconds[1:]], 1)])


def end_epoch(run: Any, epoch: int) -> None:
    """End a part of the lists that grow, as the loop does."""
    from timm_accel.training.snapshot import growing_lists  # not in versions before the parts

    run.checkpointer.growing.end_epoch(epoch, lambda: growing_lists(run.trainer))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--epochs", type=int, default=20_000)
    parser.add_argument("--states", type=int, default=1001)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Train one update and measure."""
    model, epochs = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), arguments.epochs
    measuring = Measuring([1, epochs // 2, epochs], 9, arguments.states)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TimmTrainer(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            loss_func=nn.CrossEntropyLoss(),
            num_classes=2,
            callbacks=[measuring, CsvHistoryCallback, SaveStateCallback()],
            run_dir=Path(folder, "run"),
        )
        data = TensorDataset(torch.randn(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64))
        trainer.train(data, 1, per_device_batch_size=2, train_dataloader_kwargs={"num_workers": 0})
    return [Table("a state", ["", "bytes", "ms, median (min to max)"], measuring.rows)]

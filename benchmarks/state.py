"""Save and load a state, beside accelerate's, and count what updates take longer while a state is written.

Our state also holds the EMA weights, is flushed to disk, and is verified by SHA-256 when it is loaded. accelerate's
state has none of that.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.pairs import Pairs, in_turn, spread
from benchmarks.tables import Table
from timm_accel import TimmMixupTrainer, create_classifier
from timm_accel.callbacks import Callback, SaveStateCallback
from timm_accel.states.folder import newest_state

OURS, THEIRS = "timm_accel", "accelerate"
COPY, CHECK = "taken from training", "verified and read"
ALONE, DURING = "no write", "during a write"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", default="resnet50d")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=96, help="pixels of the images of the updates")
    parser.add_argument("--batch_size", type=int, default=4)


class Measuring(Callback):
    """Saves, loads and trains on after the first update, when every part has a state."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def on_train_step_end(self, trainer: Any, batch: Any, **kwargs: Any) -> None:
        self.batch = batch

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        run, theirs = trainer.current_run(), trainer.run_dir / "accelerate"
        run.checkpointer.resume_from = "auto"  # or `restore` would save a state
        states, save, settle = trainer.run_dir / "state", run.checkpointer.save, run.checkpointer.settle

        def begin() -> float:
            taken = rested(lambda: save(run))
            settle(run)
            return taken

        def restore() -> None:
            run.checkpointer.resumed = newest_state(states, print)
            run.checkpointer.restore(run)

        saves: dict[str, Callable[[], float]] = {
            THEIRS: lambda: rested(lambda: trainer.accelerator.save_state(theirs)),
            OURS: lambda: rested(lambda: save(run, waits=True)),
        }
        self.saves = in_turn(saves | {COPY: begin}, self.rounds)
        loads = {THEIRS: lambda: trainer.accelerator.load_state(theirs), OURS: restore}
        self.loads = in_turn(loads | {CHECK: lambda: newest_state(states, print)._read.clear()}, self.rounds)
        self.updates = in_turn({ALONE: lambda: self.update(trainer), DURING: lambda: self.during(run)}, self.rounds)
        self.sizes = [size(theirs), size(newest_state(states, print).folder)]

    def update(self, trainer: Any) -> float:
        """Train, and return the seconds of an update."""
        return min(seconds(lambda: step(trainer, self.batch)) for _ in range(3))

    def during(self, run: Any) -> float:
        """Train while a state is written, and return the mean seconds of an update that ended before the write."""
        run.checkpointer.save(run)
        taken: list[float] = []
        while not run.checkpointer.has_outcome() or not taken:
            taken.append(seconds(lambda: step(run.trainer, self.batch)))
        run.checkpointer.settle(run)
        return sum(taken) / len(taken)


def step(trainer: Any, batch: Any) -> None:
    """Do what the loop does in an update."""
    trainer.backward_step(trainer.calculate_train_batch_loss(batch)["loss"])
    trainer.optimizer_step()
    trainer.after_update()
    trainer.optimizer_zero_grad()


def seconds(work: Callable[[], Any]) -> float:
    """Return the duration in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rested(work: Callable[[], Any]) -> float:
    """Return the duration in seconds when the disk has nothing left to write: states are minutes apart."""
    os.sync()
    return seconds(work)


def size(folder: Path) -> float:
    """Return the MiB of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main(arguments: argparse.Namespace) -> list[Table]:
    """Train one update and measure."""
    model, _ = create_classifier(arguments.model, num_classes=1000)
    measuring = Measuring(arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TimmMixupTrainer(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters()),
            loss_func=nn.CrossEntropyLoss(),
            num_class=1000,
            ema_decay=0,
            callbacks=[measuring, SaveStateCallback(every_n_epochs=None)],
            run_dir=Path(folder, "run"),
        )
        images = torch.randn(arguments.batch_size, 3, arguments.size, arguments.size)
        data = TensorDataset(images, torch.zeros(len(images), dtype=torch.int64))
        loader = {"num_workers": 0, "drop_last": False}
        trainer.train(data, 1, per_device_batch_size=len(images), train_dataloader_kwargs=loader)
    theirs, ours = (f"{each:.0f} MiB" for each in measuring.sizes)
    rows = [
        row(f"save ({theirs} and {ours})", measuring.saves, OURS, THEIRS),
        row("save: what training waits for, and the whole save", measuring.saves, COPY, OURS),
        row("load", measuring.loads, OURS, THEIRS),
        row("load: SHA-256 and reading alone, and accelerate's load", measuring.loads, CHECK, THEIRS),
        row("an update during a write, and one without", measuring.updates, DURING, ALONE),
    ]
    columns = ["what", "first, s, median (min to max)", "second, s", "first over second, pair by pair"]
    return [Table("save and load", columns, rows)]


def row(what: str, pairs: Pairs, first: str, second: str) -> list[str]:
    """Return the seconds of two ways, and their ratios."""
    return [what, *(spread(pairs.seconds[way], 3) for way in (first, second)), spread(pairs.ratios(first, second), 3)]

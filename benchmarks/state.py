"""Measure saving and loading a state, alternating with `accelerator.save_state` within one run.

    python benchmarks/state.py --model resnet50d --runs 7

Our state also holds the EMA weights, is flushed to disk, and is verified by SHA-256 before it is loaded. accelerate's
state has none of that.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel import TimmMixupTrainer, create_classifier
from timm_accel.callbacks import Callback, SaveStateCallback
from timm_accel.states.folder import newest_state


def seconds(work: Callable[[], Any]) -> float:
    """Return the duration in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def restore_newest(run: Any) -> None:
    """Find the newest state, check it, and restore it."""
    run.checkpointer.resumed = newest_state(run.checkpointer.run_dir / "state", print)
    run.checkpointer.restore(run)


class Measuring(Callback):
    """Saves and loads both states after the first update, when every part has a state."""

    def __init__(self, runs: int) -> None:
        self.runs, self.rows = runs, []

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        theirs, run = trainer.run_dir / "accelerate", trainer.current_run()
        for _ in range(self.runs + 1):
            row = {"save accelerate": seconds(lambda: trainer.accelerator.save_state(theirs))}
            row["save ours"] = seconds(lambda: run.checkpointer.save(run))
            row["load accelerate"] = seconds(lambda: trainer.accelerator.load_state(theirs))
            row["load ours"] = seconds(lambda: restore_newest(run))
            self.rows.append(row)
            self.sizes = [sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
                          for folder in (theirs, newest_state(trainer.run_dir / "state", print).folder)]  # fmt: skip
        del self.rows[0]  # the first run fills the file cache


def main(model_name: str, runs: int) -> None:
    """Train one update and measure."""
    model, _ = create_classifier(model_name, num_classes=1000)
    measuring = Measuring(runs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TimmMixupTrainer(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters()),
            loss_func=nn.CrossEntropyLoss(),
            num_class=1000,
            ema_decay=0.0,
            callbacks=[measuring, SaveStateCallback(every_n_epochs=None)],
            run_dir=Path(folder, "run"),
        )
        data = TensorDataset(torch.randn(2, 3, 64, 64), torch.zeros(2, dtype=torch.int64))
        trainer.train(data, 1, per_device_batch_size=2, train_dataloader_kwargs={"num_workers": 0})
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{model_name}, {runs} runs in turn, {measuring.sizes[0]:.0f} MiB (accelerate) and {measuring.sizes[1]:.0f} MiB"
    )
    for what in ("save", "load"):
        for name in ("accelerate", "ours"):
            print(f"{what} {name}: {spread([row[f'{what} {name}'] for row in measuring.rows])} s")
        ratios = [row[f"{what} ours"] / row[f"{what} accelerate"] for row in measuring.rows]
        print(f"{what}, ours over accelerate: {spread(ratios)}")


def spread(values: list[float]) -> str:
    """Return median, minimum and maximum."""
    return f"median {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50d")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    main(options.model, options.runs)

"""Runs to cut and to resume: everything that has state in one trainer, on augmented data in memory."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import run
from history_rows import without_speed
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from tiny_runs import NO_WORKERS, differences, fit, make_trainer, tiny_data, tiny_model
from torch import nn
from torch.utils.data import Dataset

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import CsvHistoryCallback, EarlyStoppingCallback, SaveBestCallback, SaveStateCallback
from timm_accel.states.folder import MANIFEST, open_state, state_folders
from timm_accel.states.manifest import signed
from timm_accel.states.run_dir import LOCK

EPOCHS, BATCH_SIZE = 3, 4


class Augmented(Dataset):
    """Data whose every draw differs, by each of the three generators; it notes what was loaded."""

    def __init__(self, count: int = 30) -> None:
        self.data, self.loaded = tiny_data(count), []

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.loaded.append(index)
        image, label = self.data[index]
        return image + random.random() + np.random.rand() + torch.rand(()), label

    def __len__(self) -> int:
        return len(self.data)


class Noting(TimmMixupTrainer):
    """Notes the images of each micro-batch, the learning rate of each update, and how many images it evaluates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.evaluated = 0
        self.images: list[torch.Tensor] = []
        self.rates: list[float] = []
        super().__init__(*args, **kwargs)

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.images.append(batch[0].clone())
        return super().calculate_train_batch_loss(batch)

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.evaluated += len(batch[0])
        return super().calculate_eval_batch_loss(batch)

    def optimizer_step(self) -> None:
        self.rates.append(self.learning_rate)
        super().optimizer_step()


class Interrupting(Noting):
    """Sends a signal to its own process in a given micro-batch."""

    at, number = 0, signal.SIGTERM

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        if len(self.images) == self.at:
            os.kill(os.getpid(), self.number)
        return super().calculate_train_batch_loss(batch)


def every_update(**options: Any) -> SaveStateCallback:
    return SaveStateCallback(every_n_updates=1, **({"keep": 1000, "keep_when_done": 1000} | options))


def keeping_two() -> list[Any]:
    """Callbacks with state that save after every update."""
    best = SaveBestCallback("eval_loss_epoch", greater_is_better=False)
    return [every_update(keep=2, keep_when_done=2), CsvHistoryCallback, best]


def make_run(run_dir: Path | None, kind: type = Noting, **options: Any) -> Any:
    """Mixup, Lookahead, EMA weights, clipping, a schedule by updates, and callbacks with state; `saves` is one of them.

    It saves after each update unless told otherwise, which takes most of the time of so small a run.
    """
    model = options.pop("model", None) or tiny_model()
    saves = options.pop("saves", None) or every_update()
    settings: dict[str, Any] = {
        "optimizer": create_optimizer_v2(model, "lookahead_adamw", lr=5e-3, weight_decay=0.01),
        "loss_func": BinaryCrossEntropy(target_threshold=0.2, smoothing=0.1),
        "eval_loss_fn": nn.CrossEntropyLoss(),
        "mixup_args": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0},
        "num_class": 3,
        "ema_decay": 0.25,
        "clip_grad": 0.5,
        "scheduler_args": {"sched": "cosine", "warmup_epochs": 1, "step_on_epochs": False},
        "callbacks": [
            saves,
            CsvHistoryCallback,
            SaveBestCallback("eval_loss_epoch", greater_is_better=False),
            EarlyStoppingCallback(patience=50),
        ],
    }
    return make_trainer(kind, model, run_dir=run_dir, **(settings | options))


def train(trainer: Any, **options: Any) -> Any:
    settings = {
        "train_dataset": Augmented(),
        "eval_dataset": Augmented(7),
        "num_epochs": EPOCHS,
        "per_device_batch_size": BATCH_SIZE,
        "train_dataloader_kwargs": NO_WORKERS,
    }
    return fit(trainer, **(settings | options))


def settle(trainer: Any) -> None:
    """Wait for the state that is written in the background."""
    trainer.current_run().checkpointer.settle(trainer.current_run())


def states(run_dir: Path) -> list[Path]:
    """The states of a run, the oldest first."""
    return state_folders(run_dir / "state")[::-1]


def positions(run_dir: Path) -> list[str]:
    """Where the run stood at each of its states: ``epoch.batch``."""
    return [".".join(folder.name.split("_")[2::2]) for folder in states(run_dir)]


def cut(run_dir: Path, after: int, target: Path) -> Path:
    """Copy a run as a kill would have left it: states up to number `after`, and files that are ahead of them."""
    shutil.copytree(run_dir, target)
    for folder in states(target)[after + 1 :]:
        shutil.rmtree(folder)
    return target


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that a run leaves, but for the serial of its last state."""
    last = open_state(states(run_dir)[-1])
    return {
        "state": {name: last.load(name) for name in last.manifest["files"]},
        "files": {
            path.relative_to(run_dir).as_posix(): without_speed(path)
            for path in sorted(run_dir.rglob("*"))
            if path.is_file() and path.name != LOCK and "state" not in path.relative_to(run_dir).parts
        },
    }


def same_outcome(first: Path, second: Path) -> str | None:
    """Where the outcomes of two runs differ; None where they do not."""
    return next(iter(differences(outcome(first), outcome(second))), None)


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run python in a separate process; its argument is the run folder ``run`` in `folder`."""
    (folder / "run.py").write_text(text)
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return run([folder / "run.py", folder / "run"], env=os.environ | {"PYTHONPATH": os.pathsep.join(path)})


def sign_again(state: Path) -> None:
    """Make a state whole again after its files were changed on purpose."""
    manifest = json.loads((state / MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        content = (state / name).read_bytes()
        entry[:] = len(content), hashlib.sha256(content).hexdigest()
    (state / MANIFEST).write_text(json.dumps(signed(manifest)))


def full_disk(*args: Any) -> None:
    """Stands in for the writer of a state's file."""
    raise OSError(28, "No space left on device")

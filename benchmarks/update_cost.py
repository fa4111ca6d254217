"""Count what one training update costs beside a bare loop of the same parts, in numbers that no other program disturbs.

    python -m benchmarks update_cost --models test_resnet resnet50

Both loops train with AdamW and a cosine schedule that steps per update; with all parts also with timm's Mixup, gradient
clipping and EMA weights. The bare loop calls timm's functions. A count is of one update: two lengths of run are
compared, so that the start and the end of a run drop out.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.tables import Table
from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.callbacks import DEFAULT_CALLBACKS

BATCH_SIZE = 4
MIXUP = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}
SCHEDULE: dict[str, Any] = {"sched": "cosine", "step_on_epochs": False}
KINDS = ("Python calls", "operators", "host reads", "file-system calls")
DISK = frozenset({"stat", "lstat", "open", "listdir", "scandir", "access", "readlink", "mkdir", "rename", "unlink"})


class PythonCalls:
    """Counts calls of Python functions, and calls that reach the disk, within its block."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "PythonCalls":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, function: Any) -> None:
        if event == "call":
            self.counts["Python calls"] += 1
        elif event == "c_call" and function.__name__ in DISK and function.__module__ in ("posix", "nt", "io", "_io"):
            self.counts["file-system calls"] += 1


class Operators(TorchDispatchMode):
    """Counts torch's operators, and those that read a tensor back to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["operators"] += 1
        self.counts["host reads"] += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def _data(num_images: int) -> TensorDataset:
    return TensorDataset(torch.randn(num_images, 3, 32, 32), torch.arange(num_images) % 10)


def train(name: str, num_updates: int, all_parts: bool) -> None:
    """Train with our trainers."""
    model = timm.create_model(name, num_classes=10)
    settings: dict[str, Any] = {
        "model": model,
        "optimizer": create_optimizer_v2(model, "adamw", lr=1e-3),
        "scheduler_args": SCHEDULE,
        "callbacks": DEFAULT_CALLBACKS,
        "sync_every_n_updates": 1_000_000,
    }
    trainer: LoopTrainer
    if all_parts:
        losses = {"loss_func": SoftTargetCrossEntropy(), "eval_loss_fn": nn.CrossEntropyLoss()}
        trainer = TimmMixupTrainer(mixup_args=MIXUP, num_class=10, ema_decay=0.5, clip_grad=1.0, **losses, **settings)
    else:
        trainer = TimmTrainer(loss_func=nn.CrossEntropyLoss(), train_accuracy=False, **settings)
    data, loader = _data(num_updates * BATCH_SIZE), {"num_workers": 0}
    trainer.train(data, num_epochs=1, per_device_batch_size=BATCH_SIZE, train_dataloader_kwargs=loader)


def train_bare(name: str, num_updates: int, all_parts: bool) -> None:
    """Train with a loop of timm's parts."""
    model = timm.create_model(name, num_classes=10).train()
    optimizer, total = create_optimizer_v2(model, "adamw", lr=1e-3), torch.zeros(())
    loss_fn: nn.Module = SoftTargetCrossEntropy() if all_parts else nn.CrossEntropyLoss()
    mixup = Mixup(**MIXUP, num_classes=10) if all_parts else None
    ema = ModelEmaV3(model, decay=0.5, use_warmup=True) if all_parts else None
    scheduler, _ = create_scheduler_v2(optimizer, **SCHEDULE, num_epochs=1, updates_per_epoch=num_updates)
    assert scheduler is not None
    loader = DataLoader(_data(num_updates * BATCH_SIZE), BATCH_SIZE, shuffle=True, drop_last=True)
    for number, (images, targets) in enumerate(loader, 1):
        if mixup is not None:
            images, targets = mixup(images, targets)
        loss = loss_fn(model(images), targets)
        total += loss.detach() * len(targets)
        loss.backward()
        if all_parts:
            dispatch_clip_grad(model.parameters(), 1.0, mode="norm")
        optimizer.step()
        if ema is not None:
            ema.update(model, step=number)
        scheduler.step_update(number)
        optimizer.zero_grad()


Loop = Callable[[str, int, bool], None]


def counts_of(run: Loop, name: str, all_parts: bool, short: int = 4, long: int = 12) -> dict[str, float]:
    """Return the counts of one update, the same in every call: the random numbers are seeded."""
    found = []
    for num_updates in (short, short, long):  # the first fills caches
        counts: Counter[str] = Counter()
        for counter in (PythonCalls(), Operators()):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            with counter:
                run(name, num_updates, all_parts)
            counts += counter.counts
        found.append(counts)
    return {kind: (found[-1][kind] - found[-2][kind]) / (long - short) for kind in KINDS}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--models", nargs="+", default=["test_resnet", "resnet50"], help="names of timm's models")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return a row for each model, loop and set of parts."""
    torch.set_num_threads(1)
    rows = []
    for name in arguments.models:
        for all_parts in (False, True):
            for title, run in {"bare": train_bare, "timm_accel": train}.items():
                counts = [f"{count:.1f}" for count in counts_of(run, name, all_parts).values()]
                rows.append([name, "all" if all_parts else "few", title, *counts])
    return [Table("counts of an update", ["model", "parts", "loop", *KINDS], rows)]

"""Compare the article's trainer (its two crashes fixed) with ours: same model, data, epochs and loader settings.

    python -m benchmarks article_script --seeds 3 --epochs 8

Trains on scikit-learn's digits on the available device. The two trainers take turns for each seed.
"""

import argparse
import gc
import time
from typing import Any

import timm
import timm.data
import timm.scheduler
import timm.utils
import torch
import torchmetrics
from accelerate.utils import set_seed
from pytorch_accelerated.trainer import Trainer
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from benchmarks.pairs import Pairs, spread
from benchmarks.quiet import quiet
from benchmarks.tables import Table
from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.data import write_digits


class ArticleTrainer(Trainer):
    """The article's `TimmMixupTrainer` with its faults, except for the metric's signature (a TypeError today)."""

    def __init__(self, eval_loss_fn: Any, mixup_args: Any, num_class: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eval_loss_fn = eval_loss_fn
        self.num_updates = None
        self.mixup_fn = timm.data.Mixup(**mixup_args)
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=num_class)
        self.ema_accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=num_class)
        self.ema_model = None

    def create_scheduler(self):
        return timm.scheduler.CosineLRScheduler(
            self.optimizer,
            t_initial=self.run_config.num_epochs,
            cycle_decay=0.5,
            lr_min=1e-6,
            t_in_epochs=True,
            warmup_t=3,
            warmup_lr_init=1e-4,
            cycle_limit=1,
        )

    def training_run_start(self):
        self.ema_model = timm.utils.ModelEmaV2(self._accelerator.unwrap_model(self.model), decay=0.9)

    def train_epoch_start(self):
        super().train_epoch_start()
        self.num_updates = self.run_history.current_epoch * len(self._train_dataloader)

    def calculate_train_batch_loss(self, batch):
        return super().calculate_train_batch_loss(self.mixup_fn(*batch))

    def train_epoch_end(self):
        self.ema_model.update(self.model)
        self.ema_model.eval()
        if hasattr(self.optimizer, "sync_lookahead"):
            self.optimizer.sync_lookahead()

    def scheduler_step(self):
        self.num_updates += 1
        if self.scheduler is not None:
            self.scheduler.step_update(num_updates=self.num_updates)

    def calculate_eval_batch_loss(self, batch):
        with torch.no_grad():
            xb, yb = batch
            outputs = self.model(xb)
            val_loss = self.eval_loss_fn(outputs, yb)
            self.accuracy.update(outputs.argmax(-1), yb)
            self.ema_accuracy.update(self.ema_model.module(xb).argmax(-1), yb)
        return {"loss": val_loss, "model_outputs": outputs, "batch_size": xb.size(0)}

    def eval_epoch_end(self):
        super().eval_epoch_end()
        if self.scheduler is not None:
            self.scheduler.step(self.run_history.current_epoch + 1)
        self.run_history.update_metric("accuracy", self.accuracy.compute().item())
        self.run_history.update_metric("ema_model_accuracy", self.ema_accuracy.compute().item())
        self.accuracy.reset()
        self.ema_accuracy.reset()


def run(kind: type[Trainer], seed: int, epochs: int) -> tuple[float, float, float]:
    """Train once, and return the final accuracy, the EMA accuracy, and the seconds in `train`."""
    data = write_digits()
    set_seed(seed)
    model, config = create_classifier("resnet10t", 10, image_size=32, drop_path_rate=0.05)
    train, val = create_datasets(
        32, config["mean"], config["std"], data / "train", data / "val", auto_augment=None, scale=(0.6, 1.0), hflip=0.0
    )
    ours = {"seed": seed} if kind is TimmMixupTrainer else {}
    trainer = kind(
        model=model,
        optimizer=create_optimizer_v2(model, opt="lookahead_AdamW", lr=5e-3, weight_decay=0.01),
        loss_func=BinaryCrossEntropy(target_threshold=0.2, smoothing=0.1),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args=dict(mixup_alpha=0.2, label_smoothing=0.1, num_classes=10),
        num_class=10,
        **ours,
    )
    loader = {"num_workers": 1, "persistent_workers": True}
    gc.collect()  # torch waits 5 s for each loader worker that the previous trainer left to the garbage collector
    started = time.perf_counter()
    trainer.train(
        per_device_batch_size=64,
        train_dataset=train,
        eval_dataset=val,
        num_epochs=epochs,
        create_scheduler_fn=trainer.create_scheduler,
        train_dataloader_kwargs=loader | {"drop_last": True},  # otherwise Mixup raises at an odd batch size
        eval_dataloader_kwargs=loader,
    )
    seconds = time.perf_counter() - started
    history = trainer.run_history
    return history.get_latest_metric("accuracy"), history.get_latest_metric("ema_model_accuracy"), seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Train both for each seed, in turn."""
    kinds: dict[str, type[Trainer]] = {"article": ArticleTrainer, "timm_accel": TimmMixupTrainer}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
    for seed in range(arguments.seeds):
        for name in list(kinds)[:: -1 if seed % 2 else 1]:
            with quiet():
                found[name].append(run(kinds[name], seed, arguments.epochs))
    pairs = Pairs({name: [seconds for *_, seconds in runs] for name, runs in found.items()})
    rows = []
    for name, runs in found.items():
        accuracies = [spread(column, 4) for column in list(zip(*runs, strict=True))[:2]]
        ratio = "" if name == "article" else spread(pairs.ratios(name, "article"))
        rows.append([name, *accuracies, spread(pairs.seconds[name], 1), ratio])
    columns = ["trainer", "accuracy", "EMA accuracy", "seconds", "seconds over the article's"]
    return [Table("median of the seeds (min to max)", columns, rows)]

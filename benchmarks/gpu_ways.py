"""The ways of training that `gpu` measures."""

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn

from benchmarks.gpu_data import AUGMENTATION, DEVICE, MEAN, STD, Clock, InMemory, Resident, Sizes, by_timms_loader
from timm_accel import TimmMixupTrainer, TimmTrainer, create_classifier
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback
from timm_accel.data import create_datasets
from timm_accel.mixins import MixupMixin
from timm_accel.upstream import Trainer

MIXUP = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "label_smoothing": 0.1}
SCHEDULE = {"sched": "cosine", "warmup_epochs": 0, "min_lr": 1e-6, "step_on_epochs": False}
CLIP, DECAY = 1.0, 0.9998


@cache
def made(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Return a model with random weights, the same each time."""
    torch.manual_seed(0)
    return create_classifier(name, num_classes, image_size=image_size)[0]


@dataclass(frozen=True)
class Task:
    """One model, on batches of one size that lie on the device, in memory, or in a folder of files."""

    name: str
    batch: int
    sizes: Sizes
    source: str | Path = "device"
    compiled: bool = False

    def model(self) -> tuple[nn.Module, nn.Module]:
        """Return a new model, and what is called: itself or its compiled form."""
        model = deepcopy(made(self.name, self.sizes.num_classes, self.sizes.image_size))
        model = model.to(DEVICE, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        return model, torch.compile(model) if self.compiled else model

    @property
    def channels_last(self) -> bool:
        return "vit" not in self.name

    def data(self, clock: Clock) -> Any:
        """Return the dataset for a trainer."""
        if self.source == "device":
            return Resident(self.batch, clock.total, self.sizes, self.channels_last)
        if self.source == "memory":
            return InMemory(self.sizes, self.batch, self.batch * clock.total)
        size = self.sizes.image_size
        return create_datasets(size, MEAN, STD, self.source, self.source, auto_augment=None, **AUGMENTATION)[0]

    def loader(self, clock: Clock) -> Iterable[Any]:
        """Return what a loop by hand iterates."""
        if isinstance(self.source, Path):
            return by_timms_loader(self.source, self.sizes, self.batch)
        return self.data(clock).loader()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all ways."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)


def by_hand(task: Task, clock: Clock, mixes: bool, averages: bool) -> None:
    """Train as a short script would: autocast, and, if asked, Mixup, clipping, a schedule and an EMA."""
    plain, model = task.model()
    optimizer, loader = adamw(plain), task.loader(clock)
    mixup = Mixup(**MIXUP, num_classes=task.sizes.num_classes) if mixes else None
    loss_fn = SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss()
    scheduler = None
    if mixes:
        scheduler, _ = create_scheduler_v2(optimizer, num_epochs=1, updates_per_epoch=clock.total, **SCHEDULE)
    average = ModelEmaV3(plain, decay=DECAY, use_warmup=True) if averages else None
    model.train()
    for number, (images, labels) in enumerate(loader, 1):
        if mixup is not None:
            images, labels = mixup(images, labels)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits = model(images)
        loss_fn(logits.float(), labels).backward()
        if mixes:
            dispatch_clip_grad(plain.parameters(), CLIP)
        optimizer.step()
        if average is not None:
            average.update(plain, step=number)
        if scheduler is not None:
            scheduler.step_update(number)
        optimizer.zero_grad()
        clock.tick()


def upstream(task: Task, clock: Clock) -> None:
    """Train by pytorch-accelerated's plain trainer, with its default callbacks."""

    class Plain(Trainer):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            return self.train_dataset.loader()

        def optimizer_zero_grad(self) -> None:
            super().optimizer_zero_grad()
            clock.tick()

    plain, model = task.model()
    Plain(model, nn.CrossEntropyLoss(), adamw(plain)).train(task.data(clock), 1, per_device_batch_size=task.batch)


class Ticking(Callback):
    """Tells the clock of each update."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        self.clock.tick()


def ours(task: Task, clock: Clock, mixes: bool, averages: bool, callbacks: tuple[Any, ...] = (), **options: Any) -> Any:
    """Train by our trainer with the same techniques and its default callbacks, and return it."""
    base = TimmMixupTrainer if averages else type("WithoutAverage", (MixupMixin, TimmTrainer), {})

    class OfBatches(base):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            if task.source == "device":
                return self.train_dataset.loader()
            return super().create_train_dataloader(batch_size, train_dl_kwargs)

    plain, model = task.model()
    num_classes = task.sizes.num_classes
    options["num_class" if averages else "num_classes"] = num_classes
    if mixes:
        options |= {"clip_grad": CLIP, "scheduler_args": SCHEDULE}
        options |= {"mixup_args": MIXUP | {"num_classes": num_classes}, "eval_loss_fn": nn.CrossEntropyLoss()}
    if averages:
        options |= {"ema_decay": DECAY}
    trainer = OfBatches(
        model=model,
        loss_func=SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss(),
        optimizer=adamw(plain),
        callbacks=[*DEFAULT_CALLBACKS, *callbacks, Ticking(clock)],
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ema_decay=")  # the run is short
        workers = {"num_workers": task.sizes.workers, "persistent_workers": False}
        trainer.train(task.data(clock), 1, per_device_batch_size=task.batch, train_dataloader_kwargs=workers)
    return trainer


Way = Callable[[Task, Clock], Any]
PLAIN, MIXED, EMA = "plain", "Mixup etc.", "Mixup etc., EMA"
WAYS: dict[str, dict[str, Way]] = {  # in each group all do the same
    PLAIN: {
        "by hand": partial(by_hand, mixes=False, averages=False),
        "pytorch-accelerated": upstream,
        "timm_accel": partial(ours, mixes=False, averages=False),
    },
    MIXED: {
        "by hand": partial(by_hand, mixes=True, averages=False),
        "timm_accel": partial(ours, mixes=True, averages=False),
    },
    EMA: {
        "by hand": partial(by_hand, mixes=True, averages=True),
        "timm_accel": partial(ours, mixes=True, averages=True),
    },
}

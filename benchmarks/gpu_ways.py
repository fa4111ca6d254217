"""The ways of training that `gpu.py` measures, and the clock that times them."""

import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.utils.data import DataLoader, Dataset

from timm_accel import TimmMixupTrainer, TimmTrainer, create_classifier
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback
from timm_accel.mixins import MixupMixin
from timm_accel.upstream import Trainer

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
MIXUP = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "label_smoothing": 0.1}
SCHEDULE = {"sched": "cosine", "warmup_epochs": 0, "min_lr": 1e-6, "step_on_epochs": False}
CLIP, DECAY = 1.0, 0.9998


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    models: tuple[str, ...] = ("resnet50d", "vit_small_patch16_224")
    image_size: int = 224
    num_classes: int = 1000
    batches: tuple[int, ...] = (256, 32)
    warmup: int = 5
    steps: dict[int, int] | int = 15
    runs: int = 3
    compiles: bool = True
    saves: int = 5
    images: int = 4096
    workers: int = 12

    def count(self, batch: int) -> int:
        """Return the steps that are timed: more of the shorter ones."""
        return self.steps if isinstance(self.steps, int) else self.steps[batch]


FULL = Sizes(steps={256: 15, 32: 40})
SMALL = Sizes(("test_resnet",), 32, 10, (8,), 1, 2, 1, False, 1, 16, 0)


class Resident(Dataset):
    """Batches that lie on the device; a loader asks for a whole one at a time."""

    def __init__(self, batch: int, count: int, sizes: Sizes, channels_last: bool) -> None:
        self.batch, self.count = batch, count
        layout = torch.channels_last if channels_last else torch.contiguous_format
        shape = (batch, 3, sizes.image_size, sizes.image_size)
        self.batches = [
            [
                torch.randn(shape, device=DEVICE).contiguous(memory_format=layout),
                torch.randint(sizes.num_classes, (batch,), device=DEVICE),
            ]
            for _ in range(2)
        ]

    def __len__(self) -> int:
        return self.batch * self.count

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return self.batches[indices[0] // self.batch % 2]

    def loader(self) -> DataLoader:
        return DataLoader(self, self.batch, collate_fn=list)


class Clock:
    """Times windows of steps on the device, after some steps that warm up.

    Args:
        warmup: Steps before the first window.
        steps: Steps of a window.
        windows: The number of windows.
        watch: Whether to count host waits in them.
    """

    def __init__(self, warmup: int, steps: int, windows: int = 1, watch: bool = False) -> None:
        self.warmup, self.steps, self.windows, self.watch = warmup, steps, windows, watch
        self.done, self.marks, self.waits = 0, [], 0
        self.total = warmup + steps * windows

    def tick(self) -> None:
        """Count a step that is complete."""
        self.done += 1
        if self.done >= self.warmup and (self.done - self.warmup) % self.steps == 0:
            self.marks.append(self._mark())
        if self.watch and self.done in (self.warmup, self.total) and DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn" if self.done == self.warmup else "default")

    def _mark(self) -> Any:
        if DEVICE.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[float]:
        """Return how long each step took, on average over each window."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if DEVICE.type == "cpu":
            return [(after - before) / self.steps for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 / self.steps for before, after in pairs]


@cache
def made(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Return a model with random weights, the same each time."""
    torch.manual_seed(0)
    return create_classifier(name, num_classes, image_size=image_size)[0]


@dataclass(frozen=True)
class Task:
    """One model, on batches of one size."""

    name: str
    batch: int
    sizes: Sizes
    compiled: bool = False

    def model(self) -> tuple[nn.Module, nn.Module]:
        """Return a new model, and what is called: itself or its compiled form."""
        model = deepcopy(made(self.name, self.sizes.num_classes, self.sizes.image_size))
        model = model.to(DEVICE, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        return model, torch.compile(model) if self.compiled else model

    @property
    def channels_last(self) -> bool:
        return "vit" not in self.name

    def data(self, clock: Clock) -> Resident:
        return Resident(self.batch, clock.total, self.sizes, self.channels_last)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all ways."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)


def by_hand(task: Task, clock: Clock, mixes: bool, averages: bool) -> None:
    """Train as a short script would: autocast, and, if asked, Mixup, clipping, a schedule and an EMA."""
    plain, model = task.model()
    optimizer, data = adamw(plain), task.data(clock)
    mixup = Mixup(**MIXUP, num_classes=task.sizes.num_classes) if mixes else None
    loss_fn = SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss()
    scheduler = None
    if mixes:
        scheduler, _ = create_scheduler_v2(optimizer, num_epochs=1, updates_per_epoch=clock.total, **SCHEDULE)
    average = ModelEmaV3(plain, decay=DECAY, use_warmup=True) if averages else None
    model.train()
    for number, (images, labels) in enumerate(data.loader(), 1):
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
            return self.train_dataset.loader()

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
        trainer.train(task.data(clock), 1, per_device_batch_size=task.batch)
    return trainer


Way = Callable[[Task, Clock], Any]
WAYS: dict[str, tuple[str, Way]] = {  # each with the one that it is compared with
    "by hand, plain": ("by hand, plain", lambda task, clock: by_hand(task, clock, False, False)),
    "pytorch-accelerated, plain": ("by hand, plain", upstream),
    "timm_accel, plain": ("by hand, plain", lambda task, clock: ours(task, clock, False, False)),
    "by hand, Mixup etc.": ("by hand, Mixup etc.", lambda task, clock: by_hand(task, clock, True, False)),
    "timm_accel, Mixup etc.": ("by hand, Mixup etc.", lambda task, clock: ours(task, clock, True, False)),
    "by hand, Mixup etc., EMA": ("by hand, Mixup etc., EMA", lambda task, clock: by_hand(task, clock, True, True)),
    "timm_accel, Mixup etc., EMA": ("by hand, Mixup etc., EMA", lambda task, clock: ours(task, clock, True, True)),
}
COMPILED = ("by hand, plain", "pytorch-accelerated, plain", "by hand, Mixup etc., EMA", "timm_accel, Mixup etc., EMA")

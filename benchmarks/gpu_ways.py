"""The ways of training that `gpu` measures, what they train on, and the clock that times them."""

import time
import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import Mixup, create_dataset, create_loader
from timm.data.loader import PrefetchLoader, fast_collate
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.utils.data import DataLoader, Dataset

from timm_accel import TimmMixupTrainer, TimmTrainer, create_classifier
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback
from timm_accel.data import create_datasets
from timm_accel.data.transforms.device_transform import DeviceTransform
from timm_accel.mixins import MixupMixin
from timm_accel.upstream import Trainer

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
MIXUP = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "label_smoothing": 0.1}
SCHEDULE = {"sched": "cosine", "warmup_epochs": 0, "min_lr": 1e-6, "step_on_epochs": False}
CLIP, DECAY = 1.0, 0.9998
MEAN, STD = (0.5,) * 3, (0.25,) * 3
AUGMENTATION: dict[str, Any] = {"interpolation": "bilinear", "color_jitter": 0.0}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    models: tuple[str, ...] = ("resnet50d", "vit_small_patch16_224")
    image_size: int = 224
    num_classes: int = 1000
    batches: tuple[int, ...] = (256, 32)
    warmup: int = 5
    steps: tuple[int, ...] = (15, 40)  # one for each batch size
    rounds: int = 3
    saves: int = 5
    images: int = 4096
    file_size: tuple[int, int] = (500, 375)
    workers: int = 12

    def clock(self, batch: int, windows: int = 1, watch: str = "") -> "Clock":
        """Return a new clock: it times more of the shorter steps."""
        return Clock(self.warmup, self.steps[self.batches.index(batch)], windows, watch)

    def input_clock(self) -> "Clock":
        """Return a new clock for one pass over the images, in large batches."""
        return Clock(self.warmup, self.images // self.batches[0] - self.warmup)


SMALL = Sizes(("test_resnet",), 32, 10, (8,), 1, (2,), 1, 1, 24, (40, 40), 0)


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


class InMemory(Dataset):
    """Random bytes in memory, to be normalized and erased on the device: by our trainer, or by timm's prefetcher."""

    def __init__(self, sizes: Sizes, batch: int, count: int) -> None:
        shape = (min(512, count), 3, sizes.image_size, sizes.image_size)
        self.pixels = torch.randint(256, shape, dtype=torch.uint8)
        self.sizes, self.batch, self.count = sizes, batch, count
        self.device_transform = DeviceTransform(MEAN, STD, re_prob=0.25, re_mode="pixel")

    def load(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pixels[index % len(self.pixels)], index % self.sizes.num_classes

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.load(index)
        return self.device_transform(image), label

    def __len__(self) -> int:
        return self.count

    def loader(self) -> Iterable[Any]:
        images, workers = Loaded(self), self.sizes.workers
        loader = DataLoader(images, self.batch, True, num_workers=workers, collate_fn=fast_collate, pin_memory=ON_GPU)
        return PrefetchLoader(loader, MEAN, STD, device=DEVICE, re_prob=0.25, re_mode="pixel")


class Loaded(Dataset):
    """The bytes themselves."""

    def __init__(self, images: InMemory) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images.load(index)

    def __len__(self) -> int:
        return len(self.images)


def write_jpegs(folder: Path, sizes: Sizes) -> None:
    """Write smooth random JPEG files of the size of ImageNet's; many are links to one file."""
    draws = np.random.default_rng(0)
    for number in range(sizes.images):
        path = folder / f"{number % sizes.num_classes:04d}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        if number >= 512:
            path.hardlink_to(folder / f"{number % 512 % sizes.num_classes:04d}" / f"{number % 512}.jpg")
            continue
        width, height = sizes.file_size
        noise = Image.fromarray(draws.integers(0, 255, (height, width, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(2)).save(path, quality=90)


def by_timms_loader(folder: Path, sizes: Sizes, batch: int) -> Iterable[Any]:
    """Return timm's loader of files."""
    shape = (3, sizes.image_size, sizes.image_size)
    options: dict[str, Any] = AUGMENTATION | {"num_workers": sizes.workers, "persistent_workers": False}
    images = create_dataset("", str(folder))
    return create_loader(images, shape, batch, True, device=DEVICE, pin_memory=ON_GPU, mean=MEAN, std=STD, **options)


class Clock:
    """Times windows of steps on the device, after some steps that warm up.

    Args:
        warmup: Steps before the first window.
        steps: Steps of a window.
        windows: The number of windows.
        watch: What torch does in them where the host waits for the device: ``warn``, ``error`` or nothing.
    """

    def __init__(self, warmup: int, steps: int, windows: int = 1, watch: str = "") -> None:
        self.warmup, self.steps, self.windows, self.watch = warmup, steps, windows, watch
        self.done, self.marks = 0, list[Any]()
        self.total = warmup + steps * windows

    def tick(self) -> None:
        """Count a step that is complete."""
        self.done += 1
        if self.done >= self.warmup and (self.done - self.warmup) % self.steps == 0:
            self.marks.append(self._mark())
        if self.watch and self.done in (self.warmup, self.total) and ON_GPU:
            torch.cuda.set_sync_debug_mode(self.watch if self.done == self.warmup else "default")

    def _mark(self) -> Any:
        if not ON_GPU:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[float]:
        """Return how long each step took, on average over each window."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if not ON_GPU:
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

"""How much `gpu` measures, what it trains on, and the clock that times the steps."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset, create_loader
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, Dataset

from benchmarks.photos import photo
from timm_accel.data.transforms.device_transform import DeviceTransform

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
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
    input_rounds: int = 2
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


SMALL = Sizes(("test_resnet",), 32, 10, (8,), 1, (2,), 1, 1, 1, 24, (40, 40), 0)


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

    def collate(self, indices: list[int]) -> Any:
        return fast_collate([self.load(index) for index in indices])

    def loader(self) -> Iterable[Any]:
        workers = {"num_workers": self.sizes.workers, "pin_memory": ON_GPU}
        loader = DataLoader(range(self.count), self.batch, True, collate_fn=self.collate, **workers)  # type: ignore[arg-type]
        return PrefetchLoader(loader, MEAN, STD, device=DEVICE, re_prob=0.25, re_mode="pixel")


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
        photo(draws, (height, width, 3)).save(path, quality=90)


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

"""Measure images per second on one core for timm's loader, torchvision's v2 transforms, and ours, within one run.

    python -m benchmarks data --data_dir elpv/train --rounds 9

Each loads the same files in one process to normalized float batches, with random crop and flip for all three and with
RandAugment for timm's and ours. Without --data_dir the files are smooth random JPEGs of 1,280 by 960 pixels. Ours is
also measured with draft=True, which decodes them at a reduced scale where the crop allows it, and with the cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.pairs import Pairs, in_turn, together
from benchmarks.tables import Table
from timm_accel.data import FolderReader, create_datasets
from timm_accel.data.seeding import KeyedSampler, SeededDataset

SIZE, BATCH = 224, 32
POLICY = "rand-m7-mstd0.5-inc1"


def write_large(folder: Path, count: int = 96) -> Path:
    """Write smooth random JPEG files of 1,280 by 960 pixels."""
    draws = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(draws.integers(0, 255, (960, 1280, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(2)).save(path, quality=90)
    return folder


class V2Images(Dataset):
    """The files through torchvision's decoder and v2 transforms."""

    def __init__(self, folder: Path) -> None:
        self.reader = FolderReader(folder)
        steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
        self.transform = v2.Compose([*steps, *scale])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = decode_image(self.reader.path(index), ImageReadMode.RGB)
        return self.transform(image), int(self.reader.labels[index])

    def __len__(self) -> int:
        return len(self.reader)


def timms(folder: Path, policy: str | None) -> Iterable[Any]:
    """Return timm's training loader."""
    dataset = create_dataset("", str(folder))
    return create_loader(
        dataset,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        color_jitter=0.0,
        auto_augment=policy,
        interpolation="bilinear",
        num_workers=0,
        device=torch.device("cpu"),
        persistent_workers=False,
    )


def v2s(folder: Path) -> Iterable[Any]:
    """Return a loader over `V2Images`."""
    return DataLoader(V2Images(folder), BATCH, shuffle=True, drop_last=True)


def ours(folder: Path, policy: str | None, **options: Any) -> Iterable[Any]:
    """Return what our trainer iterates: keyed `uint8` samples, which are normalized batch by batch."""
    dataset, _ = create_datasets(
        SIZE,
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        folder,
        folder,
        auto_augment=policy,
        interpolation="bilinear",
        color_jitter=0.0,
        **options,
    )
    order = KeyedSampler(torch.utils.data.RandomSampler(dataset), 0)
    loader = DataLoader(SeededDataset(dataset, 0), BATCH, sampler=order, drop_last=True, collate_fn=dataset.collate_fn)
    return _Finished(loader, dataset.device_transform)


class _Finished:
    def __init__(self, loader: DataLoader, finish: Callable[[Any], Any]) -> None:
        self.loader, self.finish = loader, finish

    def __iter__(self) -> Any:
        return ((self.finish(images), labels) for images, labels in self.loader)


def seconds_an_image(loader: Iterable[Any]) -> float:
    """Return the seconds per image over one pass."""
    began, count = time.perf_counter(), 0
    for images, _ in loader:
        count += len(images)
    return (time.perf_counter() - began) / count


def measure(ways: dict[str, Iterable[Any]], rounds: int) -> Pairs:
    """Return the seconds of an image of each loader."""
    return in_turn({name: partial(seconds_an_image, loader) for name, loader in ways.items()}, rounds)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data_dir", help="A folder with one folder of images per class.")
    parser.add_argument("--rounds", type=int, default=9)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure crop and flip, then RandAugment."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = write_large(Path(made)) if arguments.data_dir is None else Path(arguments.data_dir)
        what = f"{folder.name if arguments.data_dir else 'JPEG of 1,280 by 960'} to {SIZE} px"
        plain = {"timm": timms(folder, None), "v2": v2s(folder), "ours": ours(folder, None)}
        plain["ours, draft"] = ours(folder, None, draft=True)
        plain["ours, cached"] = ours(folder, None, cache="memory")
        augmented = {"timm": timms(folder, POLICY), "ours": ours(folder, POLICY)}
        augmented["ours, draft"] = ours(folder, POLICY, draft=True)
        measured = {f"crop and flip, {what}": plain, f"{POLICY} too, {what}": augmented}
        return [together("an image", {title: measure(ways, arguments.rounds) for title, ways in measured.items()})]

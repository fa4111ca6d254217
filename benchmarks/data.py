"""Measure images per second on one core for timm's loader, torchvision's v2 transforms, and ours, within one run.

    python benchmarks/data.py --data_dir elpv/train --runs 9

Each loads the same files in one process to normalized float batches, with random crop and flip for all three and with
RandAugment for timm's and ours. Without --data_dir the files are smooth random JPEGs of 1,280 by 960 pixels. Ours is
also measured with draft=True, which decodes them at a reduced scale where the crop allows it, and with the cache.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

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


def measure(title: str, ways: dict[str, Iterable[Any]], runs: int) -> None:
    """Print the throughput of each loader, and its ratio to timm's per pair."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name in random.sample(list(ways), len(ways)):
            taken = seconds_an_image(ways[name])
            if run:  # the first pass warms caches
                times[name].append(taken)
    print(title)
    for name, taken in times.items():
        ratios = [timm / own for timm, own in zip(times["timm"], taken, strict=True)]
        print(
            f"  {name:<14} {1 / statistics.median(taken):6.0f} images/s   {statistics.median(ratios):.2f} times timm "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main(data_dir: str | None, runs: int) -> None:
    """Measure crop and flip, then RandAugment."""
    with tempfile.TemporaryDirectory() as made:
        folder = write_large(Path(made)) if data_dir is None else Path(data_dir)
        what = f"{folder.name if data_dir else 'JPEG of 1,280 by 960'} to {SIZE} px, medians of {runs} runs"
        plain = {"timm": timms(folder, None), "v2": v2s(folder), "ours": ours(folder, None)}
        plain["ours, draft"] = ours(folder, None, draft=True)
        plain["ours, cached"] = ours(folder, None, cache="memory")
        measure(f"crop and flip, {what}", plain, runs)
        augmented = {"timm": timms(folder, POLICY), "ours": ours(folder, POLICY)}
        augmented["ours, draft"] = ours(folder, POLICY, draft=True)
        measure(f"{POLICY} too, {what}", augmented, runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="A folder with one folder of images per class.")
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.data_dir, arguments.runs)

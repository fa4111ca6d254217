"""Measure images per second on one core for timm's loader, torchvision's v2 transforms, and ours, within one run.

    python -m benchmarks data --rounds 9
    python -m benchmarks data --data_dir elpv/train --out elpv.json

Each loads the same files in one process to normalized float batches, with random crop and flip for all three and with
RandAugment for timm's and ours. Without --data_dir the files are smooth random JPEGs in color of 1,280 by 960 pixels,
and PNGs in grayscale of 300 by 300. Ours is also measured with draft=True, which decodes JPEGs at a reduced scale where
the crop allows it, and with the cache. A last table shows the steps on which timm's loader and ours spend their time.
"""

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.pairs import in_turn, spread
from benchmarks.photos import write_photos
from benchmarks.tables import Table
from timm_accel.data import FolderReader, create_datasets
from timm_accel.data.seeding import KeyedSampler, SeededDataset

SIZE, BATCH, COUNT = 224, 32, 96
POLICY = "rand-m7-mstd0.5-inc1"
STEPS = {  # by the names of functions written in C
    "decode": ("'decode' of 'ImagingDecoder'",),
    "copy, convert, crop": ("'copy' of", "'convert' of", "'crop' of", "_imaging.new"),
    "resize": ("'resize' of",),
    "to a `uint8` batch": ("'encode' of", "numpy.array", "torch.stack", "'copy_' of", "'tobytes' of", "'repeat' of"),
    "to floats": ("'to' of 'torch", "'sub_' of", "'div_' of"),
}

PROFILED = ("timm", "ours", "ours, draft")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data_dir", type=Path, help="a folder with one folder of images per class")
    parser.add_argument("--rounds", type=int, default=9)


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


def read_all(loader: Iterable[Any]) -> None:
    """Read one epoch."""
    for _ in loader:
        pass


def loaders(folder: Path, has_jpegs: bool, policy: str | None) -> dict[str, Iterable[Any]]:
    """Return the loaders to compare; timm's is the first."""
    found = {"timm": timms(folder, policy)}
    if policy is None:
        found["torchvision v2, other pixels"] = v2s(folder)
    found["ours"] = ours(folder, policy)
    if has_jpegs:
        found["ours, draft"] = ours(folder, policy, draft=True)
    if policy is None:
        found["ours, cached"] = ours(folder, policy, cache="memory")
    return found


def milliseconds_of_steps(loader: Any) -> list[float]:
    """Return the processor time of each of `STEPS` per image, of all else, and of all."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(read_all, loader)
    own_times = {key[2]: value[2] for key, value in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    found = [sum(own_times[name] for name in own_times if any(map(name.count, words))) for words in STEPS.values()]
    began = time.process_time()
    read_all(loader)  # without the profiler, which makes each call of a Python function slower
    total = time.process_time() - began
    return [1000 * each / (COUNT // BATCH * BATCH) for each in (*found, total - sum(found), total)]


def steps_of(name: str, folder: Path, has_jpegs: bool) -> list[list[str]]:
    """Return a row for timm's loader, and for ours with and without draft: the smallest of three times."""
    ways = loaders(folder, has_jpegs, None)
    times = {way: [milliseconds_of_steps(ways[way]) for _ in range(3)] for way in ways if way in PROFILED}
    return [[name, way, *(f"{min(each):.2f}" for each in zip(*taken, strict=True))] for way, taken in times.items()]


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure crop and flip, then RandAugment, and return images per second and the steps."""
    torch.set_num_threads(1)
    rates, steps = [], []
    with tempfile.TemporaryDirectory() as made:
        folders = {
            "JPEG, 1,280 px": write_photos(Path(made) / "jpeg", COUNT, (960, 1280, 3)),
            "gray PNG, 300 px": write_photos(Path(made) / "png", COUNT, (300, 300), blur=3, ending="png"),
        }
        for name, folder in folders.items() if arguments.data_dir is None else [("files", arguments.data_dir)]:
            files = [path for path in folder.rglob("*") if path.is_file()]
            has_jpegs = any(path.suffix.lower() in (".jpg", ".jpeg") for path in files)
            for policy in (None, POLICY):
                what = "crop, flip" + (", RandAugment" if policy else "")
                ways = {way: partial(read_all, each) for way, each in loaders(folder, has_jpegs, policy).items()}
                pairs = in_turn(ways, arguments.rounds, BATCH * (len(files) // BATCH))
                for way, seconds in pairs.seconds.items():
                    ratio = "" if way == "timm" else spread(pairs.ratios("timm", way))
                    rates.append([name, what, way, f"{1 / statistics.median(seconds):.0f}", ratio])
            steps += steps_of(name, folder, has_jpegs) if arguments.data_dir is None else []
    ratio_column = "rate over timm's, pair by pair, median (min to max)"
    return [
        Table("images per second", ["files", "transform", "loader", "images/s, median", ratio_column], rates),
        Table("milliseconds of processor time per image", ["files", "loader", *STEPS, "all else", "sum"], steps),
    ]

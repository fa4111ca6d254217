"""Measure what a stream takes to its first new batch when a run resumes within an epoch, and what it reads.

    python -m benchmarks stream_resume --images 2000

Writes JPEG files of 160 pixels into webdataset shards and into parquet shards of a Hugging Face dataset, both without a
loader worker, with a shuffle buffer of 5 % of the images. "reads again" gives every batch that was seen and drops it,
as accelerate's ``skip_first_batches`` does for iterable datasets; "passes over" is what a resumed run does. Times are
processor seconds, since other programs disturb them less.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from torch.utils.data import DataLoader

from benchmarks.pairs import in_turn, spread
from benchmarks.photos import photo
from benchmarks.quiet import quiet
from benchmarks.tables import Table
from timm_accel import create_datasets
from timm_accel.data.seeding import seed_streamed_image
from timm_accel.training.loaders import remaining

SHARDS, BATCH_SIZE = 40, 20


def jpegs(count: int) -> list[bytes]:
    """Return files that compress as photographs do."""
    draws = np.random.default_rng(0)
    files = [BytesIO() for _ in range(count)]
    for file in files:
        photo(draws, (160, 160, 3), blur=1).save(file, "jpeg", quality=90)
    return [file.getvalue() for file in files]


def webdataset(root: Path, images: list[bytes]) -> str:
    """Write shards of webdataset."""
    from webdataset import TarWriter

    for split, few in (("train", images), ("val", images[:SHARDS])):
        for shard in range(SHARDS):
            with TarWriter(str(root / f"{split}-{shard}.tar")) as tar:
                for number in range(shard, len(few), SHARDS):
                    tar.write({"__key__": f"{number:06d}", "jpg": few[number], "cls": number % 2})
    return f"wds/{root}"


def parquet(root: Path, images: list[bytes]) -> str:
    """Write shards of parquet."""
    from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars

    disable_progress_bars()
    features = Features({"image": Image(), "label": ClassLabel(names=["0", "1"])})
    for split, few in (("train", images), ("validation", images[:SHARDS])):
        for shard in range(SHARDS):
            rows = [{"bytes": each, "path": None} for each in few[shard::SHARDS]]
            table = Dataset.from_dict({"image": rows, "label": [n % 2 for n in range(len(rows))]}, features=features)
            table.to_parquet(root / f"{split}-{shard:05d}-of-{SHARDS:05d}.parquet")
    return f"hfids/{root}"


def loader_of(source: str, count: int) -> Any:
    """Return the training loader as a trainer prepares it."""
    half = (0.5,) * 3
    stream, _ = create_datasets(64, half, half, data=source, auto_augment="rand-m9-mstd0.5-inc1")
    size = count // 20
    sizes = {"sample_shuffle_size": size, "sample_initial_size": size // 4, "shuffle_size": size}
    vars(stream.reader).update(sizes)
    stream.share(BATCH_SIZE, 0, seed_image=partial(seed_streamed_image, 0))
    return DataLoader(stream, BATCH_SIZE, num_workers=0)


def to_first(make: Callable[[], Iterable[Any]], read: list[int]) -> float:
    """Return the processor seconds to the first batch, and add the bytes that were read to a list."""
    process = psutil.Process()
    bytes_before, began = process.io_counters().read_chars, time.process_time()
    batches = iter(make())
    next(batches)
    seconds = time.process_time() - began
    read.append(process.io_counters().read_chars - bytes_before)
    return seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure both ways at 10 and at 90 % of an epoch."""
    images, rows = jpegs(arguments.images), []
    for kind, write in (("webdataset", webdataset), ("Hugging Face, parquet", parquet)):
        with tempfile.TemporaryDirectory() as folder, quiet():
            loader = loader_of(write(Path(folder), images), arguments.images)
            for percent in (10, 90):
                start = len(loader) * percent // 100
                read: dict[str, list[int]] = {"reads again": [], "passes over": []}
                ways = {
                    "reads again": lambda loader=loader, start=start: islice(remaining(loader, 0), start, None),
                    "passes over": partial(remaining, loader, start),
                }
                pairs = in_turn({way: partial(to_first, ways[way], read[way]) for way in ways}, arguments.rounds)
                for way, seconds in pairs.seconds.items():
                    ratio = "" if way == "reads again" else spread(pairs.ratios(way, "reads again"), 3)
                    rows.append([kind, f"{percent} %", way, spread(seconds), ratio, f"{read[way][-1] / 1e6:.1f}"])
    columns = ["stream", "of the epoch", "way", "processor seconds to the first new batch, median (min to max)"]
    return [Table("first batch", [*columns, "over reading again, pair by pair", "MB read"], rows)]

"""Time a whole training of a small image folder by each contender, each in a new process, in turn.

    python -m benchmarks whole_run --rounds 7

From the start of Python to its exit: imports, images from files with a loader worker, Mixup, clipping, EMA, an
evaluation and a state after each epoch. Mean times tell where a run spends them.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.contenders import names
from benchmarks.pairs import in_turn
from benchmarks.processes import Spent, pairs_of, spend
from benchmarks.tables import Table

if TYPE_CHECKING:
    from benchmarks.contenders.job import Job

RUN = """
from pathlib import Path
from benchmarks.contenders import contender
train = contender({name!r})
from benchmarks.whole_run import job_of
job = job_of({name!r}, Path({images!r}), Path({states!r}), {epochs})
watch()
train(job)
"""
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
AUGMENTATION = {"auto_augment": None, "scale": (0.6, 1.0), "hflip": 0.5, "color_jitter": None}


def write_images(folder: Path, num_train: int, num_val: int, pixels: int = 32) -> None:
    """Write PNG files of noise in ten classes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", num_train), ("val", num_val)):
        for number in range(count):
            path = folder / part / f"class_{number % 10}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(256, size=(pixels, pixels, 3), dtype=np.uint8)).save(path)


def job_of(
    name: str, images: Path, states: Path | None, num_epochs: int, model: str = "test_resnet", batch_size: int = 32
) -> "Job":
    """Return the job, with our datasets for our trainer and timm's for the others."""
    from benchmarks.contenders.job import Job

    if name == "timm_accel":
        from timm_accel import create_datasets

        data, eval_data = create_datasets(32, MEAN, STD, images / "train", images / "val", **AUGMENTATION)
    else:
        from timm.data import ImageDataset, create_transform

        options = {"mean": MEAN, "std": STD}
        transform = create_transform(32, is_training=True, interpolation="random", **options, **AUGMENTATION)
        data = ImageDataset(str(images / "train"), transform=transform)
        eval_data = ImageDataset(str(images / "val"), transform=create_transform(32, **options))
    return Job(
        model,
        len(data) // batch_size,
        all_parts=True,
        data=data,
        eval_data=eval_data,
        folder=states,
        num_epochs=num_epochs,
        batch_size=batch_size,
        num_workers=1,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=600, help="a sixth of them to evaluate on")


def run_once(name: str, images: Path, epochs: int, spent: list[Spent]) -> float:
    """Train in a new process, and return its seconds."""
    with tempfile.TemporaryDirectory() as states:
        spent.append(spend(RUN.format(name=name, images=str(images), states=states, epochs=epochs)))
    return spent[-1].wall


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return a table of whole runs, and one of their parts."""
    spent: dict[str, list[Spent]] = {name: [] for name in names()}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images * 5 // 6, arguments.images // 6)
        ways = {name: partial(run_once, name, Path(folder), arguments.epochs, spent[name]) for name in spent}
        wall = in_turn(ways, arguments.rounds)
    processor, rows = pairs_of(spent, "processor"), []
    for name, runs in spent.items():
        parts = [[each.to_first, each.to_last - each.to_first, each.after_last] for each in runs[1:]]
        rows.append([name, *(f"{statistics.median(column):.2f}" for column in zip(*parts, strict=True))])
    shares = Table(
        "parts of a whole run", ["contender", "s to the first update", "s to the last", "s to the exit"], rows
    )
    return [wall.table("wall time of a whole run", "s"), processor.table("processor time of a whole run", "s"), shares]

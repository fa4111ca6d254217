"""Measure the cost of seeding every image.

    python -m benchmarks seeding --rounds 15

Images are JPEG files of 1.3 times the input size, with the random crop, flip and RandAugment of the article. At 28 px
they are PNG files of 28 px, which are only decoded and converted to a tensor.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform

from benchmarks.pairs import Pairs, in_turn, together
from benchmarks.photos import write_photos
from benchmarks.tables import Table
from timm_accel.data import ImageFolderDataset
from timm_accel.data.seeding import _IMAGE, SampleKey, SeededDataset, _seed_host, mix_seed

COUNT = 64


def naive(seed: int) -> None:
    """Seed the three global generators, as most code does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def load(dataset: Any, index: Callable[[int], Any]) -> None:
    """Load every image, with the same draws each time."""
    for number in range(COUNT):
        _seed_host(mix_seed(0, _IMAGE, 0, number))
        dataset[index(number)]


def images_in_turn(size: int, rounds: int) -> Pairs:
    """Return the time of an image of a size, without a seed and with one."""
    with tempfile.TemporaryDirectory() as folder:
        small = size == 28
        side = size if small else int(1.3 * size)
        root = write_photos(Path(folder), COUNT, (side, side, 3), ending="png" if small else "jpg", quality=75)
        augmented = {} if small else {"auto_augment": "rand-m7-mstd0.5-inc1"}
        plain = ImageFolderDataset(root, create_transform(size, is_training=not small, **augmented))
        seeded = partial(load, SeededDataset(plain, 0), lambda number: SampleKey(0, number, number))
        return in_turn({"unseeded": partial(load, plain, int), "seeded": seeded}, rounds, COUNT)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 128, 224], help="in pixels")
    parser.add_argument("--rounds", type=int, default=15)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure images of each size, and the seeding alone."""
    torch.set_num_threads(1)
    images = {f"{size} px": images_in_turn(size, arguments.rounds) for size in arguments.sizes}
    ours, keys = SeededDataset(range(COUNT), 0), [SampleKey(0, n, n) for n in range(COUNT)]  # type: ignore[arg-type]
    ways = {"seeded": lambda: [ours[key] for key in keys], "three seeds": lambda: [naive(n) for n in range(COUNT)]}
    alone = in_turn(ways, arguments.rounds, COUNT)
    return [together("images", images, "µs"), alone.table("seeding alone", "µs")]

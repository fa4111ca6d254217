"""Measure the cost of seeding every image; seeded and unseeded images alternate within one run.

    python benchmarks/seeding.py --runs 15

Images are JPEG files of 1.3 times the input size, with the random crop, flip and RandAugment of the article. At 28 px
they are PNG files of 28 px, which are only decoded and converted to a tensor.
"""

import argparse
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import create_transform

from timm_accel.data import ImageFolderDataset
from timm_accel.data.seeding import _IMAGE, SampleKey, SeededDataset, _seed_host, mix_seed

COUNT = 64


def write_images(folder: Path, size: int, suffix: str) -> Path:
    """Write smooth random images, which compress about as photographs do."""
    draws = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / str(number % 2) / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(draws.integers(0, 255, (size, size, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(2)).save(path)
    return folder


def seconds(work: Any) -> float:
    """Return the duration in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def naive(seed: int) -> None:
    """Seed the three global generators, as most code does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def main(runs: int) -> None:
    """Measure three image sizes and the seeding alone."""
    for size in (28, 128, 224):
        with tempfile.TemporaryDirectory() as folder:
            small = size == 28
            root = write_images(Path(folder), size if small else int(1.3 * size), "png" if small else "jpg")
            augmented = {} if small else {"auto_augment": "rand-m7-mstd0.5-inc1"}
            transform = create_transform(size, is_training=not small, **augmented)
            plain = ImageFolderDataset(root, transform)
            dataset, ratios, images = SeededDataset(plain, 0), [], []
            for run in range(runs + 1):
                times = {"seeded": 0.0, "unseeded": 0.0}
                for number in range(COUNT):
                    ways = {
                        "seeded": partial(dataset.__getitem__, SampleKey(run, number, number)),
                        "unseeded": partial(plain.__getitem__, number),
                    }
                    for way in sorted(ways, reverse=(run + number) % 2 == 1):  # the second one finds a cached image
                        _seed_host(mix_seed(0, _IMAGE, run, number))  # the same draws both times
                        times[way] += seconds(ways[way])
                ratios.append(times["seeded"] / times["unseeded"])
                images.append(times["unseeded"] / COUNT)
            del ratios[0], images[0]
            print(
                f"{size} px: seeded over unseeded, median of {runs}: {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}); {1e6 * statistics.median(images):.0f} us per image"
            )
    ours, keys = SeededDataset(range(COUNT), 0), [SampleKey(0, n, n) for n in range(COUNT)]  # type: ignore[arg-type]
    lean = [seconds(lambda: [ours[key] for key in keys]) / COUNT for _ in range(99)]
    heavy = [seconds(lambda: [naive(number) for number in range(COUNT)]) / COUNT for _ in range(99)]
    print(
        f"seeding alone, median of 99: {1e6 * statistics.median(lean):.1f} us per image; with random, numpy and "
        f"torch.manual_seed {1e6 * statistics.median(heavy):.1f} us"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    torch.set_num_threads(1)
    main(parser.parse_args().runs)

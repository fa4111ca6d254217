"""Measure what the identity of the data costs a run: once at its start, and nothing when a state is saved.

python benchmarks/data_identity.py --images 100000
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from timm_accel.data import LabeledImages
from timm_accel.data.identity.changes import describe_changes
from timm_accel.data.identity.listing import list_images, read_listing
from timm_accel.data.readers.folder_index import FolderReader


def main(count: int) -> None:
    """Print the seconds of each part, and the sizes of what is stored."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for label in range(100):
            (root / "images" / f"class_{label:03d}").mkdir(parents=True)
            for number in range(count // 100):
                (root / "images" / f"class_{label:03d}" / f"{number:06d}.jpg").write_bytes(b"x" * 100)
        dataset = LabeledImages(FolderReader(root / "images", root / "cache"))
        times = {"start": time.perf_counter()}
        listing = list_images(dataset)
        times["list, with sizes and times"] = time.perf_counter()
        about = listing.about()
        times["digest"] = time.perf_counter()
        listing.write(root / "lists")
        times["write"] = time.perf_counter()
        (root / "images" / "class_000" / "000000.jpg").write_bytes(b"y" * 101)
        now = list_images(dataset)
        times["list again"] = time.perf_counter()
        sentence = describe_changes("training", about, read_listing(root / "lists", about), now)
        times["compare"] = time.perf_counter()
        for what, (before, after) in zip(list(times)[1:], pairwise(times.values()), strict=True):
            print(f"{what}: {after - before:.2f} s")
        (file,) = (root / "lists").iterdir()
        print(f"{file.stat().st_size / 1e6:.2f} MB in the run folder, {len(json.dumps(about))} bytes in a state")
        print(sentence)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    main(parser.parse_args().images)

"""Measure what the identity of the data costs a run: once at its start, and nothing when a state is saved.

python -m benchmarks data_identity --images 100000
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.tables import Table
from timm_accel.data import LabeledImages
from timm_accel.data.identity.changes import describe_changes
from timm_accel.data.identity.listing import list_images, read_listing
from timm_accel.data.readers.folder_index import FolderReader


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=int, default=100_000)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure each part, and the sizes of what is stored."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for label in range(100):
            (root / "images" / f"class_{label:03d}").mkdir(parents=True)
            for number in range(arguments.images // 100):
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
        describe_changes("training", about, read_listing(root / "lists", about), now)
        times["compare"] = time.perf_counter()
        steps = zip(list(times)[1:], pairwise(times.values()), strict=True)
        rows = [[what, f"{after - before:.2f} s"] for what, (before, after) in steps]
        (file,) = (root / "lists").iterdir()
        rows.append(["the list in the run folder", f"{file.stat().st_size / 1e6:.2f} MB"])
        rows.append(["the entry in a state", f"{len(json.dumps(about))} bytes"])
    return [Table("parts", ["part", "result"], rows)]

"""Read odd image files as timm_accel does and as timm does, and compare the pixels.

    python -m benchmarks odd_images FOLDER --seconds 20

FOLDER is searched with all folders below it. It may be ``Tests/images`` of Pillow's source archive:

    pip download --no-binary :all: --no-deps pillow && tar xf pillow-*.tar.gz

Each file is read in a new process with a time limit, and prepared for evaluation at 224 pixels. The table
has the number of files of each outcome; ``--list`` prints the files too, except those with equal pixels and those that
neither reads. It fails if a file crashed, hung, or is refused by us alone for another reason than a bound.
"""

import argparse
import multiprocessing
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from timm.data import create_transform

from benchmarks.tables import Table
from timm_accel.data.transforms.image_size import check_size
from timm_accel.data.transforms.pixel_range import WIDE_MODES, proposed_range, range_of_type, values_of
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image

OUTCOMES = {
    "equal": "pixels equal to timm's",
    "turned": "turned by EXIF, otherwise equal",
    "scaled": "more than 8 bits: scaled by us, clipped by timm",
    "other": "other pixels",
    "neither": "refused by both",
    "bound": "refused by us alone, for the bound on its size",
    "not finite": "refused by us alone, for pixels that are NaN or infinite",
    "ours": "refused by us alone",
    "timms": "refused by timm alone",
    "crashed": "crashed",
    "hung": "hung",
}
FAULTS = ("ours", "other", "crashed", "hung")


def timms(path: Path) -> Image.Image:
    """Read a file as timm's ``ImageDataset`` does."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def ours(path: Path, transform: Any) -> Image.Image:
    """Read a file as our datasets do, as a dataset of this image alone, and check that it can be transformed."""
    prepare = PrepareImage(pixel_range=measured(path))
    with open(path, "rb") as file:
        image = read_image(file, prepare, transform)
    transform(image)
    return image


def measured(path: Path) -> tuple[float, float] | None:
    """Return the range of the pixels of an image of 32 bits; None for others, and where it cannot be read."""
    try:
        with Image.open(path) as image:
            check_size(image.size)
            if image.mode in WIDE_MODES and range_of_type(image) is None:
                image.load()
                values = values_of(image, str(path))
                return proposed_range(values.low, values.high, integer=False)
    except Exception:
        pass
    return None


def outcome(path: Path) -> tuple[str, str]:
    """Return the name of the outcome, and our error."""
    warnings.simplefilter("ignore")
    transform = create_transform((3, 224, 224))
    found, expected, error = None, None, ""
    try:
        found = ours(path, transform)
    except OSError as refusal:
        error = str(refusal)
    try:
        expected = timms(path)
    except Exception:
        return ("neither" if found is None else "timms"), error
    if found is None:
        kinds = {"MAX_IMAGE_PIXELS": "bound", "a side of no pixels": "bound", "NaN or infinite": "not finite"}
        return next((kind for words, kind in kinds.items() if words in error), "ours"), error
    if np.array_equal(found, expected):
        return "equal", ""
    with Image.open(path) as stored:
        if np.array_equal(found, ImageOps.exif_transpose(stored).convert("RGB")):
            return "turned", ""
        return ("scaled" if stored.mode in WIDE_MODES else "other"), ""


def report(path: Path, results: Connection) -> None:
    """Send the outcome of a file."""
    results.send(outcome(path))


def timed(path: Path, seconds: float) -> tuple[str, str, float]:
    """Return the outcome of a file in a new process, our error, and the seconds."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=report, args=(path, sender))
    start = time.perf_counter()
    process.start()
    sender.close()
    found = ("hung", "")
    if receiver.poll(seconds):
        try:
            found = receiver.recv()
        except EOFError:
            found = ("crashed", "")
    process.kill()
    process.join()
    return *found, time.perf_counter() - start


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="the time limit of one file")
    parser.add_argument("--list", action="store_true", help="print the files")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Read all files."""
    paths = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    results = {path: timed(path, arguments.seconds) for path in paths}
    faults = []
    for path, (name, error, _) in results.items():
        line = f"{OUTCOMES[name]}: {path.relative_to(arguments.folder)} {error}"
        if arguments.list and name not in ("equal", "neither"):
            print(line)
        faults += [line] * (name in FAULTS)
    if faults:
        raise SystemExit("\n".join(faults))
    names = [name for name, _, _ in results.values()]
    rows = [[words, names.count(name)] for name, words in OUTCOMES.items()]
    slowest = max(seconds for _, _, seconds in results.values())
    rows.append(["seconds of the slowest, with the start of its process", f"{slowest:.1f}"])
    return [Table("outcomes", [f"outcome with Pillow {Image.__version__}", "files"], rows)]

"""Create datasets from any source: a folder, a tar, a folder without splits, a manifest, a torchvision dataset.

    python examples/data/sources.py

Prints how many images each source has for training and evaluation, and the shape and class of the first. All sources
are made from scikit-learn's digits. A torchvision dataset reads its files from a folder, or downloads them with
`--download`.
"""

import csv
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from timm.data import ImageDataset

from timm_accel import create_datasets
from timm_accel.data import FolderReader, Source, write_digits

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def make_tar(digits: Path, out: Path) -> Path:
    """Pack the folder with its train/ and val/ into one tar file."""
    with tarfile.open(out / "digits.tar", "w") as tar:
        for path in sorted(digits.rglob("*.png")):
            tar.add(path, arcname=path.relative_to(digits))
    return out / "digits.tar"


def make_manifest(digits: Path, out: Path) -> Path:
    """List the images with their labels and splits in a table."""
    with open(out / "digits.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for path in sorted(digits.rglob("*.png")):
            split, label, _ = path.relative_to(digits).parts
            writer.writerow([path, label, split])
    return out / "digits.csv"


def main(download: bool = False) -> dict[str, tuple[int, int]]:
    """Open each source, and return the sizes of its two splits."""
    digits = write_digits()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        sources: dict[str, Any] = {
            "folder with train and val": digits,
            "one tar": make_tar(digits, out),
            "manifest": make_manifest(digits, out),
            "folder without splits": Source(digits / "train", val_fraction=0.2, split_file=out / "split.csv"),
        }
        if download:
            sources["torch/mnist"] = Source("torch/mnist", root=out, download=True)
        sizes = {}
        for name, data in sources.items():
            train, val = create_datasets(32, MEAN, STD, data=data)
            image, label = train[0]
            sizes[name] = (len(train), len(val))
            print(f"{name}: {len(train)} + {len(val)} images, the first {tuple(image.shape)} of class {label}")
    alone = ImageDataset(str(digits / "train"), reader=FolderReader(digits / "train"))  # timm accepts our readers
    print(f"timm's ImageDataset alone: {len(alone)} images, the first {alone[0][0].size} of class {alone[0][1]}")
    return sizes


if __name__ == "__main__":
    main("--download" in sys.argv)

"""Find the manifests of a dataset whose splits have one each."""

from pathlib import Path
from typing import Any

from timm_accel.data.readers.manifest_reader import MANIFESTS, manifest_columns
from timm_accel.data.splits.splitting import SPLITS, split_name


def is_manifest(data: Any) -> bool:
    """Return whether data is a path that ends as a manifest does."""
    return isinstance(data, str | Path) and Path(data).suffix.lower() in MANIFESTS


def split_manifests(folder: Path) -> dict[str, Path]:
    """Return the manifests of the splits in a folder, such as ``train.csv``.

    There are none beside splits with class folders, and none beside class folders if the tables have no column
    ``path``, since they are about something else then.

    Args:
        folder: The folder, or any other path.
    """
    if not folder.is_dir():
        return {}
    below = sorted(folder.iterdir())
    files = {split_name(each.stem): each for each in below if is_manifest(each) and each.is_file()}
    found = {name: file for name, file in files.items() if name in SPLITS}
    folders = [each for each in below if each.is_dir()]
    splits = [each for each in folders if split_name(each.name) in SPLITS]
    has_classes = any(each.is_dir() for split in splits for each in split.iterdir())
    if not {"train", "val"} & found.keys() or has_classes:
        return {}
    return found if len(folders) - len(splits) < 2 or all(map(_has_paths, found.values())) else {}


def _has_paths(file: Path) -> bool:
    try:
        return "path" in manifest_columns(file)
    except ValueError:
        return False

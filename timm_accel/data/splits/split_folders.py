"""Open folders and tars of images, and find the folders or tars of their splits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_accel.data.readers.folder_index import FolderReader, open_index
from timm_accel.data.readers.indexed_reader import check_stray_images, name_alike
from timm_accel.data.readers.tar_reader import is_tar, open_tar
from timm_accel.data.splits.nested_splits import find_splits
from timm_accel.data.splits.splitting import SPLITS, split_name


def open_unsplit(path: Path) -> Any:
    """Return the reader of a folder of classes, of a tar, or of a folder of tars.

    Args:
        path: The folder or tar.

    Raises:
        FileNotFoundError: It is missing or holds no images.
        ValueError: An image lies next to the folders of the classes, or a tar is broken.
    """
    if path.is_file() and path.suffix.lower() == ".tar":
        return open_tar(path)
    if path.is_dir() and any(map(is_tar, path.iterdir())) and not open_index(str(path)).files.counts.used:
        return open_tar(path)
    return open_class_folder(path)


def open_split(split: str, folders: Mapping[str, Path]) -> Any:
    """Return the reader of one split, whose classes are named by the same rule as those of the other splits.

    Args:
        split: The split.
        folders: The folder or tar of each split.

    Raises:
        FileNotFoundError: It holds no images.
        ValueError: An image lies next to the folders of the classes, or a tar is broken.
    """
    reader = open_unsplit(folders[split])
    name_alike([reader, *(_opened(folder) for name, folder in folders.items() if name != split)])
    return reader


def _opened(path: Path) -> Any:
    """Return the reader of a split that is not asked for; None where it cannot be read."""
    try:
        return open_tar(path) if is_tar(path) else FolderReader(path)
    except (OSError, ValueError):
        return None


def open_class_folder(root: str | Path) -> FolderReader:
    """Return the reader of a folder with one folder of images for each class.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: It is missing or holds no images.
        ValueError: An image lies in it, next to the folders.
    """
    reader = FolderReader(root)
    check_stray_images(reader)
    return reader


def split_folders(path: Path) -> dict[str, Path]:
    """Return the folders or tars of the splits, which may lie further down; none where there are no splits.

    Args:
        path: A folder.

    Raises:
        ValueError: Splits lie at several places, or a split has two folders.
    """
    found = _splits_in(path)
    if not {"train", "val"} <= found.keys():
        place = find_splits(open_index(str(path)).places(), str(path))
        found = {} if place is None else _splits_in(path / place)
    for name, folders in found.items():
        if len(folders) > 1:
            raise ValueError(
                f"Expected one folder or tar for the split {name!r}, but got {folders[0].name!r} and "
                f"{folders[1].name!r} in {str(folders[0].parent)!r}. Move one of them away."
            )
    return {name: folders[0] for name, folders in found.items()}


def _splits_in(path: Path) -> dict[str, list[Path]]:
    """Return the folders of each split in a folder, or its tars where it has no folder."""
    found: dict[str, list[Path]] = {}
    tars: dict[str, list[Path]] = {}
    for each in sorted(path.iterdir()):
        if each.is_dir():
            found.setdefault(split_name(each.name), []).append(each)
        elif is_tar(each):
            tars.setdefault(split_name(each.stem), []).append(each)
    return {name: (tars | found)[name] for name in SPLITS if name in tars | found}

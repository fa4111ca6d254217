"""Open the datasets of an audit, and find the folders and files that their readers ignore."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def open_splits(data: Any) -> dict[str, Any]:
    """Return the datasets by the name of their split, from a map or a folder.

    Args:
        data: A map of datasets, or a path.

    Raises:
        FileNotFoundError: The path has no images.
        TypeError: `data` is neither, or a dataset has no reader of files.
        ValueError: There is no dataset, or one is empty.
    """
    if isinstance(data, str | Path):
        return _open_file(Path(data)) if Path(data).is_file() else _open_folder(Path(data))
    if not isinstance(data, Mapping):
        raise TypeError(
            "Expected data to be a folder, or datasets by the name of their split, but got "
            f"{type(data).__name__}. Pass {{'train': train_set, 'val': val_set}}."
        )
    if not data:
        raise ValueError("Expected data to hold a dataset, but got none. Pass {'train': train_set}.")
    data = _with_paths_opened(data)
    for name, dataset in data.items():
        reader: Any = getattr(dataset, "reader", None)
        if not all(hasattr(reader, method) for method in ("__getitem__", "__len__", "filename")):
            raise TypeError(
                f"Expected every dataset to have a reader of files, as timm's ImageDataset has, but got {name!r}, a "
                f"{type(dataset).__name__}. Pass an ImageFolderDataset."
            )
        if len(reader) == 0:
            raise ValueError(f"Expected every dataset to hold images, but got {name!r} with none. Leave it out.")
    return {str(name): dataset for name, dataset in data.items()}


def _with_paths_opened(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a map in which the splits that are paths, as of manifests and folders, are datasets."""
    from timm_accel.data.labeled_images import LabeledImages
    from timm_accel.data.sources import Source
    from timm_accel.data.transforms.prepare_image import PrepareImage

    paths = {name: path for name, path in data.items() if isinstance(path, str | Path)}
    readers = {name: Source(paths).open(name) for name in paths}
    opened = {name: LabeledImages(reader, prepare=PrepareImage()) for name, reader in readers.items()}
    return {name: opened.get(name, dataset) for name, dataset in data.items()}


def _open_file(path: Path) -> dict[str, Any]:
    """Return the splits of a manifest or of a tar; all images where it has none."""
    from timm_accel.data.labeled_images import LabeledImages
    from timm_accel.data.readers.manifest_reader import ManifestReader, manifest_splits
    from timm_accel.data.readers.reader_views import ReaderPart
    from timm_accel.data.readers.tar_reader import open_tar, tar_splits

    readers: dict[str, Any]
    if path.suffix.lower() == ".tar":
        tar = open_tar(path)
        readers = {name: ReaderPart(tar, part) for name, part in (tar_splits(tar) or {}).items()} or {path.stem: tar}
    else:
        splits = manifest_splits(path)
        readers = {name: ManifestReader(path, name) for name in splits} or {path.stem: ManifestReader(path)}
    return {name: LabeledImages(reader) for name, reader in readers.items()}


def _open_folder(root: Path) -> dict[str, Any]:
    from timm_accel.data.datasets import ImageFolderDataset
    from timm_accel.data.splitting import SPLITS, split_name
    from timm_accel.data.transforms.prepare_image import PrepareImage

    prepare = PrepareImage()  # without a pixel_range, which the audit proposes
    below = _folders(root)
    if any(split_name(folder.name) in SPLITS and _folders(folder) for folder in below):
        below.sort(key=lambda folder: (not folder.name.startswith("train"), folder.name))
        return {folder.name: ImageFolderDataset(folder, prepare=prepare) for folder in below}
    return {root.resolve().name: ImageFolderDataset(root, prepare=prepare)}


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def empty_folders(reader: Any) -> tuple[str, ...]:
    """Return the names of the class folders without a file that timm would read.

    Args:
        reader: A timm reader; the result is empty for a reader of anything but class folders.
    """
    from timm.data.readers import get_img_extensions

    if (root := _root(reader)) is None:
        return ()
    known = get_img_extensions(as_set=True)
    return tuple(folder.name for folder in _folders(root) if not known & _endings(folder).keys())


def unread_files(reader: Any) -> dict[str, int]:
    """Return how many files of each extension timm's readers ignore although Pillow could read them.

    Args:
        reader: A timm reader; the result is empty for a reader of anything but class folders.
    """
    from timm.data.readers import get_img_extensions

    if (root := _root(reader)) is None:
        return {}
    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    ignored = readable - get_img_extensions(as_set=True)
    return {ending: count for ending, count in sorted(_endings(root).items()) if ending in ignored}


def _root(reader: Any) -> Path | None:
    """Return the folder of the class folders; None for other readers."""
    by_folder = type(reader).__name__ in ("ReaderImageFolder", "FolderReader")
    return Path(reader.root) if by_folder else None


def _endings(folder: Path) -> Counter[str]:
    files = (name for _, _, names in os.walk(folder, followlinks=True) for name in names)
    return Counter(os.path.splitext(name)[1].lower() for name in files)

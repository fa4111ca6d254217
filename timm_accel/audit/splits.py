"""Open the datasets of an audit, and count the files that their readers use and leave out."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm_accel.data.image_files import FileCounts

_CAMERA_ENDINGS = {".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf", ".raf", ".rw2"}


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
    from timm_accel.data.labeled_images import LabeledImages
    from timm_accel.data.readers.indexed_reader import name_alike
    from timm_accel.data.readers.reader_views import alike
    from timm_accel.data.splits.split_folders import open_unsplit, split_folders
    from timm_accel.data.transforms.prepare_image import PrepareImage

    if root.is_dir() and (folders := split_folders(root)):
        readers = {
            folder.stem if folder.is_file() else folder.name: open_unsplit(folder) for folder in folders.values()
        }
        readers |= _further(next(iter(folders.values())).parent, readers)
        name_alike(readers.values())
        first, *others = readers
        readers |= {name: alike(readers[first], readers[name])[1] for name in others}  # as in training
    else:
        readers = {root.resolve().name: open_unsplit(root)}
    prepare = PrepareImage()  # without a pixel_range, which the audit proposes
    return {name: LabeledImages(reader, prepare=prepare) for name, reader in readers.items()}


def _further(parent: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the readers of other folders of classes beside the splits, such as ``extra``."""
    from timm_accel.data.image_files import is_leftover
    from timm_accel.data.splits.split_folders import open_class_folder

    found = {}
    for folder in sorted(parent.iterdir()):
        if folder.is_dir() and folder.name not in known and not is_leftover(folder.name):
            with suppress(FileNotFoundError, ValueError):  # it holds no classes
                found[folder.name] = open_class_folder(folder)
    return found


def count_files(reader: Any) -> "FileCounts":
    """Return how many files a reader uses, and how many of its folder or archive it leaves out.

    Args:
        reader: A timm reader, or a part of one.
    """
    from timm_accel.data.image_files import FileCounts, empty_folders, walk_images

    used = [reader.filename(number) for number in range(len(reader))]
    counts = getattr(getattr(reader, "reader", reader), "files", None)
    if isinstance(counts, FileCounts):
        return replace(counts, used=FileCounts.of(used, ()).used)
    if type(reader).__name__ != "ReaderImageFolder":
        return FileCounts.of(used, ())
    folders, known = list(walk_images(str(reader.root))), set(used)  # timm's reader counts nothing
    files = [os.path.join(folder.path, name) for folder in folders for name in folder.images + folder.others]
    return FileCounts.of(
        used,
        [file for file in files if file not in known],
        sum(folder.leftovers for folder in folders),
        empty_folders([folder.path for folder in folders], map(os.path.dirname, used)),
    )


def unread_files(counts: "FileCounts") -> dict[str, int]:
    """Return how many files by ending are left out although they are images: of Pillow's formats, or of cameras.

    Args:
        counts: The counts of a split.
    """
    from timm_accel.data.image_files import image_endings

    images = image_endings() | _CAMERA_ENDINGS
    return {ending: count for ending, count in sorted(counts.left_out.items()) if ending in images}

"""Read images in tars from an index, correctly in every loader worker, and find their splits by the folders in them."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from timm.utils import natural_key

from timm_accel.data.classes import class_name
from timm_accel.data.image_files import is_leftover
from timm_accel.data.readers.indexed_reader import IndexedReader, check_stray_images
from timm_accel.data.readers.tar_index import open_tar_index
from timm_accel.data.splits.splitting import SPLITS, split_name


class TarReader(IndexedReader):
    """Read the images of a tar, of a folder of tars, and of tars in tars, without unpacking.

    The classes are the names of the folders with images, or of tars with images outside folders. Order and labels are
    those of timm's reader. Links within a tar are followed; of several members of one name the last counts. If there
    are folders for training and evaluation, at any depth, images outside the folder with these are left out.

    Args:
        root: The tar, or the folder of tars.
        cache_folder: The folder of the indices; None for the user's cache directory.

    Raises:
        FileNotFoundError: There is no tar, or it holds no images.
        tarfile.TarError: A tar is incomplete or broken.
        ValueError: There are splits at several places.

    Source: ``timm.data.readers.reader_image_in_tar.ReaderImageInTar``.
    """

    def __init__(self, root: str | Path, cache_folder: str | Path | None = None) -> None:
        self.root = os.fspath(root)
        self._tars, self._opened = _tars(self.root), dict[int, int]()
        if not self._tars:
            raise FileNotFoundError(f"Expected a tar or a folder of tars, but got {self.root!r}. Correct the path.")
        index = open_tar_index(self.root, self._tars, cache_folder)
        if not index.files.counts.used:
            why = index.files.counts.why_none()
            raise FileNotFoundError(f"Expected a tar with images, but got {self.root!r}, {why}")
        below = [folder[len(index.place or "") :].lstrip("/") for folder in index.files.folders]
        self._split_of = None if index.place is None else [split_name(folder.partition("/")[0]) for folder in below]
        if self._split_of is not None:
            below = _composed([each.partition("/")[2] for each in below], self._split_of)
        self._tar_of, self._offsets, self._sizes = index.tar_of, index.offsets, index.sizes
        super().__init__(index.files, below)

    def splits(self) -> dict[str, np.ndarray] | None:
        """Return the indices of the images of each split; None for tars without splits."""
        if self._split_of is None:
            return None
        split_of = np.array(self._split_of)[self._list.folder_of]
        return {name: np.flatnonzero(split_of == name) for name in SPLITS if name in split_of}

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        number = range(len(self))[index]
        tar, size = int(self._tar_of[number]), int(self._sizes[number])
        content = self._read(tar, size, int(self._offsets[number]))
        if len(content) < size:
            raise OSError(f"{self._tars[tar]!r} ends before the end of {self.filename(number)!r}")
        return io.BytesIO(content), int(self.labels[number])

    def _read(self, tar: int, size: int, offset: int) -> bytes:
        if not hasattr(os, "pread"):  # Windows
            with open(self._tars[tar], "rb") as file:
                file.seek(offset)
                return file.read(size)
        if tar not in self._opened:
            self._opened[tar] = os.open(self._tars[tar], os.O_RDONLY)
        # without a position in the file, which forked loader workers would share
        return os.pread(self._opened[tar], size, offset)

    def size(self, index: int) -> int:
        """Return the size of an image in bytes."""
        return int(self._sizes[index])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_opened", {}).values():
            os.close(descriptor)


def _composed(folders: list[str], split_of: list[str]) -> list[str]:
    """Return the folders of the classes in Unicode's form NFC, unless one split has a class in both forms."""
    composed = [class_name(folder) for folder in folders]
    is_one_to_one = len(set(zip(split_of, composed, strict=True))) == len(set(zip(split_of, folders, strict=True)))
    return composed if is_one_to_one else folders


def open_tar(path: Path) -> TarReader:
    """Return the reader of a tar or of a folder of tars.

    Args:
        path: The tar, or the folder.

    Raises:
        FileNotFoundError: It holds no images.
        ValueError: A tar is incomplete or broken, there are splits at several places, or an image lies next to the
            folders of the classes.
    """
    try:
        reader = TarReader(path)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"Expected a complete tar, but got {str(path)!r} ({error}). Copy or make it again.") from error
    check_stray_images(reader)
    return reader


def tar_splits(reader: Any) -> dict[str, np.ndarray] | None:
    """Return the indices of the images in each split's folder of a tar; None where it has no such folders."""
    return reader.splits() if isinstance(reader, TarReader) else None


def is_tar(path: Path) -> bool:
    """Return whether a path is a tar, and not what a system left behind."""
    return path.suffix.lower() == ".tar" and not is_leftover(path.name) and path.is_file()


def _tars(root: str) -> list[str]:
    if os.path.isfile(root):
        return [root]
    found = [name for name in os.listdir(root) if is_tar(Path(root, name))] if os.path.isdir(root) else []
    return [os.path.join(root, name) for name in sorted(found, key=lambda name: (natural_key(name), name))]

"""A reader over a list of files in arrays, which loader workers share, and the names of its classes."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from timm.data.readers.reader import Reader
from timm.utils import natural_key

from timm_accel.data.image_files import FileCounts


@dataclass(frozen=True)
class FileList:
    """Images in folders, in arrays instead of one Python object for each.

    Args:
        folders: The folders, by their path below the root.
        folder_of: The number of the folder of each image, ``(N,)``.
        names: The names of all images in their folders, one after the other.
        bounds: Where each name begins and ends, ``(N + 1,)``.
        counts: What was used and left out.
    """

    folders: list[str]
    folder_of: np.ndarray
    names: bytes
    bounds: np.ndarray
    counts: FileCounts

    @classmethod
    def of(cls, samples: Iterable[tuple[str, str]], folders: Collection[str], counts: FileCounts) -> "FileList":
        """Return the list of samples (folder, name); `folders` may have more folders than they."""
        numbers = {folder: number for number, folder in enumerate(folders)}
        folder_of, names = [], []
        for folder, name in samples:
            folder_of.append(numbers[folder])
            names.append(os.fsencode(name))
        return cls(
            folders=list(folders),
            folder_of=np.array(folder_of, dtype=np.int32),
            names=b"".join(names),
            bounds=np.cumsum([0, *map(len, names)]),
            counts=counts,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the list as arrays, for a file."""
        return {
            "folders": as_array(self.folders),
            "folder_of": self.folder_of,
            "names": np.frombuffer(self.names, dtype=np.uint8),
            "bounds": self.bounds,
            "counts": as_array([json.dumps(asdict(self.counts))]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "FileList":
        """Return the list that `arrays` returned."""
        counts = json.loads(as_texts(arrays["counts"])[0])
        return cls(
            folders=as_texts(arrays["folders"]),
            folder_of=arrays["folder_of"],
            names=arrays["names"].tobytes(),
            bounds=arrays["bounds"],
            counts=FileCounts(**counts | {"empty_folders": tuple(counts["empty_folders"])}),
        )


def as_array(texts: Iterable[str]) -> np.ndarray:
    """Return texts as one array of bytes; none of them holds a zero."""
    return np.frombuffer(os.fsencode("\0".join(texts)), dtype=np.uint8)


def as_texts(array: np.ndarray) -> list[str]:
    """Return the texts that `as_array` joined."""
    return os.fsdecode(array.tobytes()).split("\0")


class IndexedReader(Reader):
    """Read the images of a list: the class of an image is the name of its folder.

    Where several folders with images have one name, as ``apartment/outdoor`` and ``church/outdoor``, these classes are
    named by the path. timm (1.0.31) makes them one class.

    Args:
        files: The images.
        class_folders: The path of each folder below the one that holds the classes, such as a split.
    """

    class_to_idx: dict[str, int]
    """The label of each class."""
    labels: np.ndarray
    """The label of each sample, an integer array of shape ``(len(reader),)``."""

    def __init__(self, files: FileList, class_folders: list[str]) -> None:
        super().__init__()
        self._list, self._class_folders = files, class_folders
        self._used = np.flatnonzero(np.bincount(files.folder_of, minlength=len(files.folders)))
        self.name_by_path(self.repeated_names)

    @property
    def files(self) -> FileCounts:
        """How many files are used and left out."""
        return self._list.counts

    @property
    def repeated_names(self) -> frozenset[str]:
        """The names that several folders with images have."""
        folders = {self._class_folders[number] for number in self._used}
        names = sorted(os.path.basename(folder) for folder in folders)
        return frozenset(name for name, following in pairwise(names) if name == following)

    def name_by_path(self, names: Collection[str]) -> None:
        """Name the classes of these folders by their path, and all others by the name of the folder."""
        self.named_by_path = frozenset(names)
        classes = [
            folder if (name := os.path.basename(folder)) in names else name
            for folder in (path.replace(os.sep, "/") for path in self._class_folders)
        ]
        used = {classes[number] for number in self._used}
        self.class_to_idx = {name: label for label, name in enumerate(sorted(sorted(used), key=natural_key))}
        self.labels = np.array([self.class_to_idx.get(name, -1) for name in classes])[self._list.folder_of]

    def name_below(self, splits: Iterable[str]) -> None:
        """Name the classes by their path below the folder of their split, so that all splits have the same.

        Args:
            splits: The path of the folder of each split.
        """
        for split in splits:
            self._class_folders = [folder.removeprefix(split + os.sep) for folder in self._class_folders]
        self.name_by_path(self.repeated_names)

    @property
    def class_sizes(self) -> dict[str, int]:
        """The number of images of each class, in the order of the labels."""
        return dict(zip(self.class_to_idx, np.bincount(self.labels).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._list.folder_of)

    def _place(self, index: int) -> tuple[str, str]:
        """Return the folder and the name of a sample."""
        index = range(len(self))[index]
        name = os.fsdecode(self._list.names[self._list.bounds[index] : self._list.bounds[index + 1]])
        return self._list.folders[self._list.folder_of[index]], name

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        folder, name = self._place(index)
        return name if basename else os.path.join(folder, name)


def check_stray_images(reader: IndexedReader) -> None:
    """Raise a `ValueError` for an image beside the folders of the classes, which timm puts into a class of no name."""
    if (number := reader.class_to_idx.get("")) is not None:
        stray = reader.filename(int(np.flatnonzero(reader.labels == number)[0]), absolute=True)
        raise ValueError(
            f"Expected a folder with one folder of images for each class, but got {stray!r} beside the folders. "
            "Move it into the folder of its class."
        )


def name_alike(readers: Iterable[Any]) -> None:
    """Name the classes of all splits of a dataset by one rule: by path where a name repeats in any of them.

    Args:
        readers: The readers of the splits; those that do not name classes by folder are left as they are.
    """
    indexed = [reader for reader in readers if isinstance(reader, IndexedReader)]
    repeated = frozenset[str]().union(*(reader.repeated_names | reader.named_by_path for reader in indexed))
    for reader in indexed:
        reader.name_by_path(repeated)


def log_files(readers: Mapping[str, Any]) -> None:
    """Log, on rank 0, how many files the readers of a run use and leave out.

    Args:
        readers: The readers by the name of their split; the parts of one reader get one line.
    """
    whole = {split: getattr(reader, "reader", reader) for split, reader in readers.items()}
    if len({id(reader) for reader in whole.values()}) == 1:
        whole = {"data": next(iter(whole.values()))}
    for split, reader in whole.items():
        names = sorted(getattr(reader, "named_by_path", ()))
        note = (
            f"; classes named by path, since folders share a name: {', '.join(map(repr, names[:5]))}" if names else ""
        )
        if isinstance(counts := getattr(reader, "files", None), FileCounts):
            counts.log(split, note + ", …" * (len(names) > 5))

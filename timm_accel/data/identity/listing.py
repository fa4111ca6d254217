"""What a dataset consists of: the path and label of each image, and the size and time, or the content, of its file.

The digest of these belongs to every state of a run. The list itself is one file for each dataset beside the states, so
that a state does not grow with the data.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.readers.reader import Reader
from torch.utils.data import Subset

from timm_accel.atomic import atomic_write, open_own
from timm_accel.data.classes import labels_of
from timm_accel.data.readers.tar_reader import TarReader
from timm_accel.data.seeding import SeededDataset
from timm_accel.data.streams.stream_reader import StreamReader

MAX_STAT = 100_000
"""The largest number of files whose sizes and times are looked at unless this is asked for."""
FILE_CHECKS = ("stat", "contents")
UNKNOWN = -1
"""Stands for a size, time or content that was not looked at."""


@dataclass(frozen=True)
class Listing:
    """The images of a dataset, in their order.

    Args:
        names: The paths of the images from the root, in UTF-8 with a zero byte after each; empty if there are no files.
        labels: The label of each image, or a hash of its list of labels; empty if they are unknown.
        sizes: The size of each file in bytes, or `UNKNOWN`.
        times: The time of its last modification in nanoseconds, or `UNKNOWN`.
        contents: A hash of its content, or `UNKNOWN`.
        root: The folder that the paths start from; "" if there is none.
        count: The number of images.
    """

    names: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    contents: np.ndarray
    root: str = ""
    count: int | None = None

    def about(self) -> dict[str, Any]:
        """Return the plain values that a state holds."""
        return {"digest": self.digest(), "images": self.count, "root": self.root}

    def digest(self) -> str:
        """Return the SHA-256 of everything but the root."""
        hashed = hashlib.sha256(str(self.count).encode())
        for name, array in self._arrays().items():
            hashed.update(f"{name} {array.dtype} {len(array)} ".encode())
            hashed.update(np.ascontiguousarray(array).data)
        return hashed.hexdigest()

    def _arrays(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("names", "labels", "sizes", "times", "contents")}

    def paths(self) -> list[str]:
        """Return the path of each image; none if there are no files."""
        return self.names.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

    def write(self, folder: Path) -> None:
        """Write the list into a folder, under its digest, unless it is there.

        Raises:
            OSError: The folder cannot be written to.
        """
        path = _file(folder, self.digest())
        if path.is_symlink():
            path.unlink()
        if not path.is_file():
            with atomic_write(path) as unfinished:
                stored: dict[str, Any] = {"count": np.array(UNKNOWN if self.count is None else self.count)}
                np.savez_compressed(unfinished, **stored, **self._arrays())


def read_listing(folder: Path, about: dict[str, Any]) -> Listing | None:
    """Return the list that belongs to the values of a state; None if it is missing or damaged."""
    try:
        path = _file(folder, str(about["digest"]))
        with open(path, "rb", opener=open_own) as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        count = int(arrays.pop("count"))
        listing = Listing(**arrays, root=str(about["root"]), count=None if count == UNKNOWN else count)
        return listing if listing.digest() == about["digest"] else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest[:16]}.npz"


def list_images(dataset: Any, check: str | None = None) -> Listing:
    """Return what a dataset consists of.

    Args:
        dataset: Any dataset. Of those without a timm reader, the length and the labels that it lists are known.
        check: ``"stat"`` looks at the size and time of every file, and ``"contents"`` reads every file too; None looks
            at sizes and times of up to `MAX_STAT` files.
    """
    indices: np.ndarray | None = None
    while isinstance(dataset, SeededDataset | Subset):
        if isinstance(dataset, Subset):
            chosen = np.asarray(dataset.indices, dtype=int)
            indices = chosen if indices is None else chosen[indices]
        dataset = dataset.dataset
    reader = getattr(dataset, "reader", None)
    if isinstance(reader, StreamReader):
        return _of_stream(reader)
    if not isinstance(reader, Reader):
        return _of_any(dataset, indices)
    labels, numbers = labels_of(reader), np.arange(len(reader))
    while hasattr(reader, "reader"):  # a part, other labels, or a cache of another reader
        numbers = reader.numbers[numbers] if hasattr(reader, "numbers") else numbers
        reader = reader.reader
    if indices is not None:
        labels, numbers = labels[indices], numbers[indices]
    return _of_files(reader, numbers.tolist(), labels, check)


def _of_files(reader: Any, numbers: list[int], labels: np.ndarray, check: str | None) -> Listing:
    has_paths = not hasattr(reader, "origins")  # otherwise they are only names, and may repeat
    names = [str(reader.filename(number)) if has_paths else str(number) for number in numbers]
    status = np.full((len(numbers), 2), UNKNOWN, dtype=np.int64)
    if has_paths and (check is not None or len(numbers) <= MAX_STAT):
        look = _status_in_tar(reader) if isinstance(reader, TarReader) else _status_of_file(reader)
        status = np.array([look(number) for number in numbers], dtype=np.int64).reshape(-1, 2)
    contents = [_hash(_content(reader, number)) if check == "contents" else UNKNOWN for number in numbers]
    return Listing(
        _joined(names),
        _hashed_labels(labels),
        status[:, 0],
        status[:, 1],
        np.array(contents, dtype=np.int64),
        root=os.path.abspath(reader.root) if has_paths and isinstance(getattr(reader, "root", None), str) else "",
        count=len(numbers),
    )


def _status_of_file(reader: Any) -> Callable[[int], tuple[int, int]]:
    def look(number: int) -> tuple[int, int]:
        try:
            status = os.stat(reader.filename(number, absolute=True))
        except (OSError, ValueError):
            return UNKNOWN, UNKNOWN
        return status.st_size, status.st_mtime_ns

    return look


def _status_in_tar(reader: Any) -> Callable[[int], tuple[int, int]]:
    return lambda number: (reader.size(number), UNKNOWN)


def _content(reader: Any, number: int) -> bytes:
    try:
        file, _ = reader[number]
    except OSError:
        return b""
    if isinstance(file, bytes):
        return file
    if not hasattr(file, "read"):
        return file.tobytes()  # a PIL image
    with file:
        return file.read()


def _of_stream(reader: Any) -> Listing:
    """Return the shards of a stream, where they are known; each counts as a file."""
    shards = list(getattr(getattr(reader, "split_info", None), "filenames", ()))
    root = str(getattr(reader, "root", "") or "")
    sizes = [os.path.getsize(path) if os.path.isfile(path := os.path.join(root, name)) else UNKNOWN for name in shards]
    nothing = np.full(len(shards), UNKNOWN, dtype=np.int64)
    return Listing(
        _joined(shards),
        nothing,
        np.array(sizes, dtype=np.int64),
        nothing,
        nothing,
        root=os.path.abspath(root) if root and "://" not in root else root,
        count=int(reader.num_samples),
    )


def _of_any(dataset: Any, indices: np.ndarray | None) -> Listing:
    count = len(dataset) if hasattr(dataset, "__len__") else None
    lists = (*(getattr(dataset, name, None) for name in ("targets", "labels")), *getattr(dataset, "tensors", ())[-1:])
    labels = next((each for each in map(_integers, lists) if count is not None and len(each) == count), _NONE)
    if indices is not None:
        count, labels = len(indices), labels[indices] if len(labels) else labels
    return Listing(_NONE.astype(np.uint8), labels, _NONE, _NONE, _NONE, count=count)


_NONE = np.zeros(0, dtype=np.int64)


def _integers(labels: Any) -> np.ndarray:
    """Return labels as integers; an empty array where they are something else."""
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):
        return _NONE
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iub" else _NONE


def _hashed_labels(labels: np.ndarray) -> np.ndarray:
    if labels.dtype != object:
        return labels.astype(np.int64)
    return np.array([_hash(repr(sorted(map(int, each))).encode()) for each in labels], dtype=np.int64)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def _joined(names: Sequence[str]) -> np.ndarray:
    return np.frombuffer("".join(f"{name}\0" for name in names).encode("utf-8", "surrogateescape"), dtype=np.uint8)

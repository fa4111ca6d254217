"""Find images that are the same file or have the same bytes, so that a drawn split keeps them on one side."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

_END = 4096  # bytes at the end of a file, which differ between almost all images of equal size


def equal_images(reader: Any) -> np.ndarray | None:
    """Return a number for each image of a reader, ``(N,)``, which equal images share; None if no two are equal.

    Files are equal that are one file (the same path, a link to it) or have the same bytes. Only files of equal size are
    read: their last 4 KiB, and completely where these are equal as well. Images that are no separate files, as in a
    tar, are not compared; for a torch dataset only the index counts.

    Args:
        reader: A timm reader.
    """
    if (origins := getattr(reader, "origins", None)) is not None:
        numbers = np.asarray(origins)
    else:
        paths = [reader.filename(number, absolute=True) for number in range(len(reader))]
        numbers = _numbered(_identity(path, number) for number, path in enumerate(paths))
        files = [(paths[first], int(first)) for first in np.unique(numbers, return_index=True)[1]]
        lowest = np.arange(len(numbers))
        for same in _of_equal_content(files):
            lowest[numbers[same]] = numbers[same[0]]
        numbers = lowest[numbers]
    return numbers if len(np.unique(numbers)) < len(numbers) else None


def merged_groups(*groupings: Sequence[Any] | np.ndarray | None) -> np.ndarray | None:
    """Return the groups of images that any of several groupings connects, ``(N,)``; None where all are None.

    Args:
        groupings: The group of each image, ``(N,)``; None for a grouping that connects none.
    """
    known = [_numbered(groups) for groups in groupings if groups is not None]
    if not known:
        return None
    merged = known[0]
    while True:  # lower every number to the lowest that is reachable, until nothing changes
        before = merged
        for groups in known:
            lowest = np.full(groups.max() + 1, len(groups))
            np.minimum.at(lowest, groups, merged)
            merged = lowest[groups]
        if np.array_equal(before, merged):
            return merged


def _numbered(keys: Iterable[Hashable]) -> np.ndarray:
    """Number keys in the order in which they occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _identity(path: str, number: int) -> Hashable:
    """Return what a file is known by: one file has one inode. An image that is no file is known by its number."""
    try:
        status = os.stat(path)
    except (OSError, TypeError, ValueError):
        return number
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _of_equal_content(files: list[tuple[str, int]]) -> list[list[int]]:
    """Return the groups of files with the same bytes, each file by its number."""
    groups = [files]
    for key in (_size, digest_of_end, _digest):
        groups = [part for group in groups for part in _parted(group, key)]
    return [[number for _, number in group] for group in groups]


def _parted(files: list[tuple[str, int]], key: Any) -> list[list[tuple[str, int]]]:
    parts: dict[Hashable, list[tuple[str, int]]] = defaultdict(list)
    for file in files:
        if (value := key(file[0])) is not None:
            parts[value].append(file)
    return [part for part in parts.values() if len(part) > 1]


def _size(path: str) -> int | None:
    """Return the size of a file; None where it is no file, or empty, which is broken and not equal."""
    try:
        return (os.stat(path).st_size or None) if os.path.isfile(path) else None
    except (OSError, TypeError, ValueError):
        return None


def digest_of_end(path: str) -> bytes | None:
    """Return a digest of the last 4 KiB of a file; None where it cannot be read."""
    return _digest(path, _END)


def _digest(path: str, end: int | None = None) -> bytes | None:
    """Return a digest of a file or of its last bytes; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            if end is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - end))
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None

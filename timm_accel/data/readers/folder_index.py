"""An index of a folder of images: in arrays, which loader workers share, and cached on disk between runs.

timm's folder reader lists every file at each start and keeps one Python object for each. Here the first start writes
the list of files into the user's cache, and later starts only check whether a folder of the tree has changed.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import timm
from timm.utils import natural_key

from timm_accel.data.image_files import FileCounts, empty_folders, ending_of, image_endings, walk_images
from timm_accel.data.readers.cached_arrays import cache_file, read_arrays, write_arrays
from timm_accel.data.readers.indexed_reader import FileList, IndexedReader
from timm_accel.data.readers.regular_files import open_regular
from timm_accel.messages import nearest_path

_FORMAT = 2
_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system is FAT's, of two seconds


class FolderReader(IndexedReader):
    """Read millions of files: images and order are those of timm's folder reader, and the second start is fast.

    Every raster format that Pillow opens is read, and of animations the first frame. The classes are the names of the
    folders with images, or their paths where several have one name. Classes and images are in natural order; links to
    folders are followed. What a system leaves behind, such as ``@eaDir`` and names that begin with a dot, is neither
    class nor image; `files` counts it, and other files that are left out.

    The index is built again when a folder of the tree has another time of modification or change (in nanoseconds), so
    added, removed and renamed files and folders are noticed. New content of a file is not noticed, and need not be,
    since the index holds only names. The index is built again, and not cached, when a folder changed less than two
    seconds ago or could not be listed. If a file system keeps no times of folders (some object stores), delete the
    cache after a change.

    There are further differences from timm (1.0.31). The order of classes that are equal in natural order, such as
    ``1`` and ``01``, differs from run to run in timm and is fixed here. A loop of links is an error here; timm reads
    every image up to 41 times. There is no class map.

    Args:
        root: A folder with one folder of images for each class.
        cache_folder: The folder of the indices, one file for each root; None for the user's cache directory. It is no
            error when it cannot be written to.

    Raises:
        FileNotFoundError: `root` is missing, is not a folder or holds no images.
        ValueError: A link in it leads back to a folder that it lies in.

    Source: ``timm.data.readers.reader_image_folder.ReaderImageFolder``; git's "racy" index for recent changes.
    """

    def __init__(self, root: str | Path, cache_folder: str | Path | None = None) -> None:
        self.root = os.fspath(root)
        wanted = "Expected a folder with one folder of images for each class, but got"
        if not os.path.isdir(self.root):
            if os.path.exists(self.root):
                raise FileNotFoundError(
                    f"{wanted} {self.root!r}, a file and not a folder. Pass a folder, a .tar, or a manifest "
                    "as .csv or .parquet; unpack other archives."
                )
            remedy = nearest_path(self.root, "Correct the path.")
            raise FileNotFoundError(f"{wanted} {self.root!r}, which is not a folder. {remedy}")
        files = open_index(self.root, cache_folder).files
        if not files.counts.used:
            raise FileNotFoundError(f"{wanted} {self.root!r}, {files.counts.why_none()}")
        super().__init__(files, files.folders)

    def path(self, index: int) -> str:
        """Return the path of a sample, below `root` as it was given."""
        return os.path.join(self.root, *self._place(index))

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return open_regular(self.path(index)), int(self.labels[index])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        if absolute and not basename:
            return self.path(index)  # as timm's: below `root` as it was given
        return super()._filename(index, basename)


@dataclass(frozen=True)
class FolderIndex:
    """The content of a folder.

    Args:
        files: The images; its folders are all folders and all broken links below the root.
        times: The times of modification and of change of the folders in ns, ``(folders, 2)``.
        tars: The tars, by their path below the root; none where there are images.
    """

    files: FileList
    times: np.ndarray
    tars: list[str]

    def places(self) -> list[str]:
        """Return the folders that hold images themselves; where there are none, each tar as a folder with a folder."""
        used = np.flatnonzero(np.bincount(self.files.folder_of))
        return [self.files.folders[number] for number in used] + [
            os.path.join(tar[: -len(".tar")], os.path.basename(tar)) for tar in self.tars
        ]


def open_index(root: str, cache_folder: str | Path | None = None) -> FolderIndex:
    """Return the index of a folder, from the cache unless a folder of the tree has changed.

    Args:
        root: The folder.
        cache_folder: The folder of the indices; None for the user's cache directory.

    Raises:
        ValueError: A link in it leads back to a folder that it lies in.
    """
    about = json.dumps([_FORMAT, timm.__version__, sorted(image_endings())])
    file = cache_file("folder_index", os.fsencode(os.path.abspath(root)), cache_folder)
    if (arrays := read_arrays(file, about)) is not None:
        index = FolderIndex(FileList.from_arrays(arrays), arrays["times"], [])
        if np.array_equal(index.times, [_times(os.path.join(root, name)) for name in index.files.folders]):
            return index
    began = time.time_ns()
    index, complete = _scan(root)
    if complete and index.files.counts.used and index.times.max() < began - _SETTLED_NS:
        write_arrays(file, about, index.files.arrays() | {"times": index.times})
    return index


def _times(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ctime_ns  # tar and rsync set the first back, nothing sets the second


def _scan(root: str) -> tuple[FolderIndex, bool]:
    """List the tree as timm does; also return whether all of it could be listed."""

    def refuse_loop(link: str, above: str) -> None:
        raise ValueError(
            f"Expected no loop of links among the folders of images, but got {os.path.join(root, link)!r}, "
            f"which leads back to {os.path.join(root, above)!r}. Remove the link."
        )

    errors: list[OSError] = []
    samples: list[tuple[str, str]] = []
    others: list[str] = []
    leftovers = 0
    times = {"": _times(root)}
    folders = [""]
    for folder in walk_images(root, errors.append, refuse_loop):
        for name in folder.subfolders:  # before they are listed: a change from here on is noticed at the next start
            folders.append(os.path.join(folder.path, name))
            times[folders[-1]] = _times(os.path.join(root, folders[-1]))
        for name in folder.others:
            others.append(os.path.join(folder.path, name))
            if not os.path.exists(os.path.join(root, others[-1])):  # a broken link, which may become one to a folder
                times[others[-1]] = _times(os.path.join(root, others[-1]))
        samples += [(folder.path, name) for name in folder.images]
        leftovers += folder.leftovers
    samples.sort(key=lambda sample: tuple(natural_key(os.path.join(*sample))))  # the collector passes over such tuples
    empty = empty_folders(folders, {folder for folder, _ in samples})
    counts = FileCounts.of((name for _, name in samples), others, leftovers, empty)
    tars = [name for name in others if ending_of(name) == ".tar" and not samples]
    return FolderIndex(FileList.of(samples, times, counts), np.array(list(times.values())), tars), not errors

"""An index of a folder of images: in arrays, which loader workers share, and cached on disk between runs.

timm's folder reader lists every file at each start and keeps one Python object for each. Here the first start writes
the list of files into the user's cache, and later starts only check whether a folder of the tree has changed.
"""

import hashlib
import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import timm
from platformdirs import user_cache_dir
from timm.data.readers import get_img_extensions
from timm.data.readers.reader import Reader
from timm.utils import natural_key

from timm_accel.atomic import atomic_write
from timm_accel.data.regular_files import open_regular

_FORMAT = 1
_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system is FAT's, of two seconds
_DIGEST_SIZE = hashlib.sha256().digest_size


class FolderReader(Reader):
    """Read millions of files: the samples and labels are those of timm's folder reader, and the second start is fast.

    The classes are the names of the folders with images. Classes and images are in natural order; links to folders are
    followed. The index is built again when a folder of the tree has another time of modification or change (in
    nanoseconds), so added, removed and renamed files and folders are noticed. New content of a file is not noticed,
    and need not be, since the index holds only names. The index is built again, and not cached, when a folder changed
    less than two seconds ago or could not be listed. If a file system keeps no times of folders (some object stores),
    delete the cache after a change.

    There are three differences from timm (1.0.31). The order of classes that are equal in natural order, such as ``1``
    and ``01``, differs from run to run in timm and is fixed here. A loop of links is an error here; timm reads every
    image up to 41 times. There is no class map.

    Args:
        root: A folder with one folder of images for each class.
        cache_folder: The folder of the indices, one file for each root; None for the user's cache directory. It is no
            error when it cannot be written to.

    Attributes:
        class_to_idx: The label of each class.
        labels: The label of each sample, an integer array of shape ``(len(reader),)``.

    Raises:
        FileNotFoundError: `root` is missing, is not a folder or holds no images.
        ValueError: A link in it leads back to a folder that it lies in.

    Source: ``timm.data.readers.reader_image_folder.ReaderImageFolder``; git's "racy" index for recent changes.
    """

    def __init__(self, root: str | Path, cache_folder: str | Path | None = None) -> None:
        super().__init__()
        self.root = os.fspath(root)
        wanted = "Expected a folder with one folder of images for each class, but got"
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"{wanted} {self.root!r}, which is not a folder. Correct the path.")
        self._index = _open_index(
            self.root,
            Path(user_cache_dir("timm_accel"), "folder_index") if cache_folder is None else Path(cache_folder),
        )
        if len(self) == 0:
            raise FileNotFoundError(f"{wanted} {self.root!r}, which holds no images. Correct the path.")
        names = [os.path.basename(folder) for folder in self._index.folders]
        used = {names[number] for number in np.flatnonzero(np.bincount(self._index.folder_of))}
        self.class_to_idx = {name: label for label, name in enumerate(sorted(sorted(used), key=natural_key))}
        self.labels = np.array([self.class_to_idx.get(name, -1) for name in names])[self._index.folder_of]

    @property
    def class_sizes(self) -> dict[str, int]:
        """The number of images of each class, in the order of the labels."""
        return dict(zip(self.class_to_idx, np.bincount(self.labels).tolist(), strict=True))

    def path(self, index: int) -> str:
        """Return the path of a sample, below `root` as it was given."""
        return os.path.join(self.root, self._filename(index))

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return open_regular(self.path(index)), int(self.labels[index])

    def __len__(self) -> int:
        return len(self._index.folder_of)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        if absolute and not basename:
            return self.path(index)  # as timm's: below `root` as it was given
        index = range(len(self))[index]
        name = os.fsdecode(self._index.names[self._index.bounds[index] : self._index.bounds[index + 1]])
        return name if basename else os.path.join(self._index.folders[self._index.folder_of[index]], name)


@dataclass(frozen=True)
class _Index:
    folders: list[str]  # every folder and every broken link below the root, by relative path
    times: np.ndarray  # (folders, 2): of modification and of change, in ns
    folder_of: np.ndarray  # (samples,)
    names: bytes  # the names of all samples, one after the other
    bounds: np.ndarray  # (samples + 1,): where each begins and ends


def _open_index(root: str, cache_folder: Path) -> _Index:
    place = os.path.abspath(root)
    about = json.dumps([_FORMAT, timm.__version__, sorted(get_img_extensions())])
    file = cache_folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.index"
    index = _read(file, about)
    if index is not None and np.array_equal(index.times, [_times(os.path.join(root, name)) for name in index.folders]):
        return index
    began = time.time_ns()
    index, complete = _scan(root)
    if complete and len(index.folder_of) and index.times.max() < began - _SETTLED_NS:
        _write(file, about, index)
    return index


def _times(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ctime_ns  # tar and rsync set the first back, nothing sets the second


def _scan(root: str) -> tuple[_Index, bool]:
    """List the tree as timm does; also return whether all of it could be listed."""
    types = get_img_extensions(as_set=True)
    errors: list[OSError] = []
    samples: list[tuple[str, str]] = []
    times, real = {"": _times(root)}, {"": os.path.realpath(root)}
    for path, subfolders, files in os.walk(root, followlinks=True, onerror=errors.append):
        folder = path[len(os.path.join(root, "")) :]
        for name in subfolders:  # before os.walk lists them: a change from here on is noticed at the next start
            below, link = os.path.join(folder, name), os.path.join(path, name)
            times[below] = _times(link)
            real[below] = os.path.realpath(link) if os.path.islink(link) else os.path.join(real[folder], name)
            _check_loop(below, real, root)
        for name in files:
            if os.path.splitext(name)[1].lower() in types:
                samples.append((folder, name))
            elif not os.path.exists(os.path.join(path, name)):  # a broken link, which may become one to a folder
                times[os.path.join(folder, name)] = _times(os.path.join(path, name))
    samples.sort(key=lambda sample: tuple(natural_key(os.path.join(*sample))))  # the collector passes over such tuples
    numbers = {folder: number for number, folder in enumerate(times)}
    names = [os.fsencode(name) for _, name in samples]
    return _Index(
        folders=list(times),
        times=np.array(list(times.values())),
        folder_of=np.array([numbers[folder] for folder, _ in samples], dtype=np.int32),
        names=b"".join(names),
        bounds=np.cumsum([0, *map(len, names)]),
    ), not errors


def _check_loop(folder: str, real: dict[str, str], root: str) -> None:
    above = folder
    while above:
        above = os.path.dirname(above)
        if real[above] == real[folder]:
            raise ValueError(
                f"Expected no loop of links among the folders of images, but got {os.path.join(root, folder)!r}, "
                f"which leads back to {os.path.join(root, above)!r}. Remove the link."
            )


def _digest(about: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(about.encode())
    digest.update(content)
    return digest.digest()


def _read(file: Path, about: str) -> _Index | None:
    """Return the index in a file; None when it is missing, damaged or of other settings."""
    try:
        with open(file, "rb") as opened:
            digest, content = opened.read(_DIGEST_SIZE), opened.read()
    except OSError:
        return None
    if _digest(about, content) != digest:
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return _Index(
            folders=os.fsdecode(arrays["folders"].tobytes()).split("\0"),
            times=arrays["times"],
            folder_of=arrays["folder_of"],
            names=arrays["names"].tobytes(),
            bounds=arrays["bounds"],
        )


def _write(file: Path, about: str, index: _Index) -> None:
    content = io.BytesIO()
    np.savez(
        content,
        folders=np.frombuffer(os.fsencode("\0".join(index.folders)), dtype=np.uint8),
        times=index.times,
        folder_of=index.folder_of,
        names=np.frombuffer(index.names, dtype=np.uint8),
        bounds=index.bounds,
    )
    try:
        with atomic_write(file, shared=True) as unfinished, open(unfinished, "wb") as opened:
            opened.write(_digest(about, content.getbuffer()))
            opened.write(content.getbuffer())
    except OSError:
        return  # the next start lists the tree again

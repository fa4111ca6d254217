"""An index of the images in tars: listed once, kept in the user's cache, and compared with the tars at each start.

timm's reader (1.0.31) leaves a pickle of a large tar beside it, and believes it when the tar has been replaced. Here
nothing is written into the user's data, and size, times and headers of each tar must be those of the index.
"""

import hashlib
import json
import os
import posixpath
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from timm.utils import natural_key

from timm_accel.data.image_files import FileCounts, ending_of, image_endings, is_leftover
from timm_accel.data.readers.cached_arrays import cache_file, read_arrays, write_arrays
from timm_accel.data.readers.indexed_reader import FileList, as_array, as_texts
from timm_accel.data.splits.nested_splits import find_splits
from timm_accel.data.splits.splitting import SPLITS, split_name

_FORMAT = 1
_SETTLED_NS = 2_000_000_000  # as for folders: the coarsest clock of a file system
_HEADERS = 256  # of each tar, that are compared with the index


@dataclass(frozen=True)
class TarIndex:
    """The images in tars.

    Args:
        files: The images, below the folders in the tars; the name of a tar in a folder or a tar counts as a folder.
        place: The folder that holds the splits, "" for the top; None where there are none.
        tar_of: The number of the tar of each image, ``(N,)``.
        offsets: Where its content begins in the tar, in bytes, ``(N,)``.
        sizes: The length of its content in bytes, ``(N,)``.
    """

    files: FileList
    place: str | None
    tar_of: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


def open_tar_index(root: str, tars: list[str], cache_folder: str | Path | None = None) -> TarIndex:
    """Return the index of the tars, from the cache unless one of them has changed.

    Args:
        root: The tar, or the folder of the tars.
        tars: The tars.
        cache_folder: The folder of the indices; None for the user's cache directory.

    Raises:
        tarfile.TarError: A tar is incomplete or broken.
        ValueError: There are splits at several places.
    """
    about = json.dumps([_FORMAT, sorted(image_endings()), [os.path.basename(tar) for tar in tars]])
    file = cache_file("tar_index", os.fsencode(os.path.abspath(root)), cache_folder)
    stamps = [_stamp(tar) for tar in tars]
    arrays = read_arrays(file, about)
    if arrays is None or not _is_of(arrays, tars, stamps):
        began = time.time_ns()
        arrays = _list(root, tars)
        if max(stamp[1] for stamp in stamps) < began - _SETTLED_NS and stamps == [_stamp(tar) for tar in tars]:
            write_arrays(file, about, arrays | {"stamps": np.array(stamps)})
    files, place = FileList.from_arrays(arrays), as_texts(arrays["place"])[0]
    return TarIndex(files, json.loads(place), arrays["tar_of"], arrays["offsets"], arrays["sizes"])


def _stamp(tar: str) -> tuple[int, int, int]:
    status = os.stat(tar)
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns), status.st_mtime_ns


def _is_of(arrays: dict[str, np.ndarray], tars: list[str], stamps: list[tuple[int, int, int]]) -> bool:
    if not np.array_equal(arrays["stamps"], stamps):
        return False
    return as_texts(arrays["digest"])[0] == _digest(tars, arrays["headers"])


def _digest(tars: list[str], headers: np.ndarray) -> str:
    """Return a digest of the headers (tar, start, end): names, sizes and times of members."""
    digest = hashlib.sha256()
    for number, tar in enumerate(tars):
        with open(tar, "rb") as file:
            for _, start, end in headers[headers[:, 0] == number].tolist():
                file.seek(start)
                digest.update(file.read(end - start))
    return digest.hexdigest()


@dataclass(frozen=True)
class _Member:
    folder: str
    name: str
    inner: str  # the path in its tar, by which timm sorts
    tar: int
    offset: int
    size: int


@dataclass
class _Listing:
    """What has been found in tars so far."""

    images: list[_Member] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    leftovers: set[str] = field(default_factory=set)
    headers: list[tuple[int, int, int]] = field(default_factory=list)


def _list(root: str, tars: list[str]) -> dict[str, np.ndarray]:
    listing = _Listing()
    for number, tar in enumerate(tars):
        prefix = "" if tar == root else Path(tar).stem
        before = len(listing.headers)
        with open(tar, "rb") as file:
            _list_tar(file, prefix, number, 0, listing)
        step = -(-(len(listing.headers) - before) // _HEADERS) or 1
        listing.headers[before:] = listing.headers[before::step]
    place = find_splits({image.folder for image in listing.images}, root)
    outside = {image for image in listing.images if place is not None and _split(image.folder, place) not in SPLITS}
    images = sorted(
        (image for image in listing.images if image not in outside), key=lambda image: tuple(natural_key(image.inner))
    )
    others = [*listing.others, *(image.name for image in outside)]
    samples = [(image.folder, image.name) for image in images]
    counts = FileCounts.of((name for _, name in samples), others, len(listing.leftovers))
    headers = np.array(listing.headers, dtype=np.int64).reshape(-1, 3)
    return {
        **FileList.of(samples, list(dict.fromkeys(folder for folder, _ in samples)), counts).arrays(),
        "place": as_array([json.dumps(place)]),
        "tar_of": np.array([image.tar for image in images], dtype=np.int32),
        "offsets": np.array([image.offset for image in images], dtype=np.int64),
        "sizes": np.array([image.size for image in images], dtype=np.int64),
        "headers": headers,
        "digest": as_array([_digest(tars, headers)]),
    }


def _split(folder: str, place: str) -> str:
    """Return the split of a folder; "" where it lies outside the place of the splits."""
    inside = f"{folder}/".startswith(f"{place}/" if place else "")
    return split_name(folder[len(place) :].lstrip("/").partition("/")[0]) if inside else ""


def _list_tar(file: IO[bytes], prefix: str, number: int, base: int, listing: _Listing) -> None:
    """List a tar that begins at an offset of another, or of itself."""
    endings = image_endings()
    contents: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = _normal(member.name)
            listing.headers.append((number, base + member.offset, base + member.offset_data))
            if leftover := _leftover(name):
                listing.leftovers.add(posixpath.join(prefix, leftover))
            elif member.issym() or member.islnk():
                start = posixpath.dirname(name) if member.issym() else ""
                links[name] = _normal(posixpath.join(start, member.linkname))
                contents.pop(name, None)
            elif member.isfile() and ending_of(name) == ".tar":
                below = posixpath.join(prefix, name[: -len(".tar")])
                _list_tar(_opened(tar, member), below, number, base + member.offset_data, listing)
            elif member.isfile():
                contents[name] = (-1 if member.issparse() else base + member.offset_data, member.size)
                links.pop(name, None)
        file.seek(tar.offset)
        if (end := file.read(tarfile.BLOCKSIZE)).strip(b"\0"):  # tarfile (Python 3.13) passes over what follows
            raise tarfile.ReadError(f"no header of a file at byte {base + tar.offset}")
        if 0 < len(end) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")
    for name, target in links.items():
        contents[name] = contents.get(_followed(target, links), (-1, 0))
    for name, (offset, size) in contents.items():
        folder, file_name = posixpath.split(name)
        if ending_of(name) in endings and offset >= 0:
            folder = posixpath.join(prefix, folder).rstrip("/")
            listing.images.append(_Member(folder, file_name, name, number, offset, size))
        else:
            listing.others.append(name)


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    return tar.extractfile(member)


def _normal(name: str) -> str:
    return posixpath.normpath(f"/{name}").lstrip("/")


def _leftover(name: str) -> str:
    """Return the topmost folder or file of a path that a system left behind; "" where there is none."""
    parts = name.split("/")
    return next(("/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if is_leftover(part)), "")


def _followed(target: str, links: dict[str, str]) -> str:
    for _ in range(len(links)):
        if target not in links:
            break
        target = links[target]
    return target

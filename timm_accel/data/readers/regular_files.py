"""Files that may be opened: a pipe would wait for ever, and a device may never end."""

import os
from typing import BinaryIO


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading in binary mode.

    Args:
        path: The file.

    Raises:
        OSError: It is missing or cannot be read, or it is a pipe, a socket or a device.
    """
    check_regular(path)
    return open(path, "rb")


def is_special(path: str | os.PathLike) -> bool:
    """Return whether a path is a pipe, a socket or a device."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_regular(path: str | os.PathLike) -> None:
    """Raise an `OSError` when a path is a pipe, a socket or a device; a missing file and a folder pass."""
    if is_special(path):
        raise OSError(
            f"Expected a regular file, but got {str(path)!r}, which is a pipe, a socket or a device. Name a file."
        )


def _is_readable(entry: os.DirEntry) -> bool:
    """Return whether a file may be opened; a broken link is reported when it is."""
    if entry.is_symlink():
        return not is_special(entry.path)
    return entry.is_file(follow_symlinks=False)


class FolderListing:
    """Which files exist; each folder is listed once."""

    def __init__(self) -> None:
        self._files: dict[str, set[str]] = {}

    def exists(self, path: str) -> bool:
        """Return whether a file is in its folder; a pipe or a device is not."""
        folder, name = os.path.split(path)
        if folder not in self._files:
            self._files[folder] = _files(folder)
        return name in self._files[folder]


def _files(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_readable(entry)}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL is a ValueError
        return set()

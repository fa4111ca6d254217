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

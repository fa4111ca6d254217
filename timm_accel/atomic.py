"""Files that appear whole or not at all: written beside their place, checked there, flushed, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path of the same name in a folder of its own; at the end what is there takes its place.

    An exception inside leaves the old file as it was. Whatever else lies in that folder moves first, the file itself
    last.

    Args:
        path: The file to be written or replaced; its folder is made where missing.

    Raises:
        OSError: Nothing can be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"Expected path to be a file, but got the folder {str(path)!r}. Add a file name.")
    unfinished = path.parent / f".{path.name}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise OSError(
            f"Expected path to be where files can be written, but got {str(path)!r} ({error.strerror}). Choose another "
            "folder."
        ) from error
    try:
        yield unfinished / path.name
        for written in sorted(unfinished.iterdir(), key=lambda each: each.name == path.name):
            with open(written, "rb") as file:
                os.fsync(file.fileno())
            os.replace(written, path.parent / written.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)

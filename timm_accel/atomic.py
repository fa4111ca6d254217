"""Files and folders that appear whole or not at all: written beside their place, flushed, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from uuid import uuid4


@contextmanager
def atomic_write(path: str | Path, *, shared: bool = False, flush: bool = True) -> Iterator[Path]:
    """Give a path of the same name in a temporary folder; at the end what was written there takes its place.

    An exception inside leaves the old file as it was. Whatever else was written into the temporary folder moves first,
    `path` itself last. Files get the mode that the umask gives, whoever wrote them: safetensors 0.8 writes its own
    with 0600.

    Args:
        path: The file to be written or replaced, or a new folder, to be made by the caller; its parent is made where
            missing.
        shared: Whether several processes may write it at once: the last one wins. Else what a killed process has left
            is removed first.
        flush: Whether the bytes are on the disk before the name is, so that a power cut leaves no empty file; slow for
            thousands of files.

    Raises:
        OSError: Nothing can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Expected path to be a file, but got the folder {str(path)!r}. Add a file name.")
    temporary = _temporary_folder(path, f".{uuid4().hex}" if shared else "")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir(parents=True)
    except OSError as error:
        raise OSError(
            f"Expected path to be where files can be written, but got {str(path)!r} ({error.strerror}). Choose another "
            "folder."
        ) from error
    try:
        mode = _mode_of_new_files(temporary)
        yield temporary / path.name
        for written in sorted(temporary.iterdir(), key=lambda each: each.name == path.name):
            _finish(written, mode, flush)
            os.replace(written, path.parent / written.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftover(path: Path) -> None:
    """Remove what a killed `atomic_write` of a path has left, for its only writer."""
    shutil.rmtree(_temporary_folder(path), ignore_errors=True)


def _temporary_folder(path: Path, which: str = "") -> Path:
    return path.parent / f".{path.name}{which}.unfinished"


def _mode_of_new_files(folder: Path) -> int:
    """Return the mode of a new file; the umask itself can be read by changing it alone, for all threads."""
    probe = folder / ".mode"
    probe.touch()
    mode = S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _finish(written: Path, mode: int, flush: bool) -> None:
    """Set the mode of a file, or of the files of a folder, and put them on the disk."""
    for path in [written] if written.is_file() else written.rglob("*"):
        if path.is_file():
            if S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
            if flush:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())

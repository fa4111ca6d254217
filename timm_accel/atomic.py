"""Atomic writes: a file or folder is written to a temporary folder, flushed to disk, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from uuid import uuid4


@contextmanager
def atomic_write(path: str | Path, *, shared: bool = False, flush: bool = True) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, and move what was written there to `path` at the end.

    If the block raises an exception, the old file stays. Other files in the temporary folder are moved first, and
    `path` itself last. All files get the mode of the umask, since safetensors 0.8 writes files with mode 0600.

    Args:
        path: The file to write or replace, or a new folder that the caller creates. A missing parent is created.
        shared: Whether more than one process may write it at the same time; then the last one wins. Otherwise the
            leftover of a killed process is removed first.
        flush: Whether the bytes are flushed to disk before the rename, so that a power cut leaves no empty file. This
            is slow for thousands of files.

    Raises:
        OSError: Nothing can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Expected path to be a file, but got the folder {str(path)!r}. Add a file name.")
    temporary = _temporary_folder(path, f".{uuid4().hex}" if shared else "")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
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
    """Remove the leftover of a killed `atomic_write`; call it only from the single writer of `path`."""
    shutil.rmtree(_temporary_folder(path), ignore_errors=True)


def _temporary_folder(path: Path, which: str = "") -> Path:
    return path.parent / f".{path.name}{which}.unfinished"


def _mode_of_new_files(folder: Path) -> int:
    """Return the mode of a new file; reading the umask itself would change it for all threads."""
    probe = folder / ".mode"
    probe.touch()
    mode = S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _finish(written: Path, mode: int, flush: bool) -> None:
    """Set the mode of a file, or of all files of a folder, and flush them to disk."""
    for path in [written] if written.is_file() else written.rglob("*"):
        if path.is_file():
            if S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
            if flush:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())

"""Atomic writes: a file or folder is written to a temporary folder, flushed to disk, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE, S_ISREG
from uuid import uuid4

_FULL = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)]  # Windows has no quota of users
_REFUSED = [*_FULL, errno.EROFS, errno.EFBIG]


@contextmanager
def atomic_write(path: str | Path, *, shared: bool = False, flush: bool = True) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, and move what was written there to `path` at the end.

    If the block raises an exception, the old file stays. Other files in the temporary folder are moved first, and
    `path` itself last. All files get the mode of the umask, since safetensors 0.8 writes files with mode 0600. Nobody
    else can write into the temporary folder, and what is in its place before is removed, never followed.

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
        remove(temporary)  # left by a killed process
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
    except OSError as error:
        raise _refusal(path, error.strerror) from error
    try:
        mode = _mode_of_new_files(temporary)
        yield temporary / path.name
        for written in sorted(temporary.iterdir(), key=lambda each: each.name == path.name):
            _finish(written, mode, flush)
            os.replace(written, path.parent / written.name)
    except Exception as error:  # safetensors, torch and pyarrow raise different classes for a full disk
        if (why := why_unwritable(error, temporary)) is None:
            raise
        raise _refusal(path, why) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _NothingWrittenError(Exception):
    """Ends a trial of writing."""


def check_writable(path: str | Path) -> None:
    """Raise, before the work for it, if a file cannot be written.

    Args:
        path: The file.

    Raises:
        OSError: Nothing can be written there.
    """
    with suppress(_NothingWrittenError), atomic_write(path, shared=True, flush=False):
        raise _NothingWrittenError


def why_unwritable(error: BaseException, folder: Path) -> str | None:
    """Return why nothing can be written into a folder; None if an error, and what led to it, has another reason."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen.errno in _REFUSED or str(folder) in str(seen.filename)):
            return os.strerror(seen.errno) if seen.errno else seen.strerror
        for number in _REFUSED:
            if os.strerror(number) in str(seen):  # the number does not pass from Rust and C++
                return os.strerror(number)
        seen = seen.__cause__ or seen.__context__
    return None if folder.is_dir() else os.strerror(errno.ENOENT)


def _refusal(path: Path, why: str | None) -> OSError:
    free = "Free disk space, or choose" if why in [os.strerror(number) for number in _FULL] else "Choose"
    return OSError(
        f"Expected path to be where files can be written, but got {str(path)!r} ({why}). {free} another folder."
    )


def remove_leftover(path: Path) -> None:
    """Remove the leftover of a killed `atomic_write`; call it only from the single writer of `path`."""
    with suppress(OSError):
        remove(_temporary_folder(path))


def open_own(path: str, flags: int) -> int:
    """Open a regular file of a run, and never follow a link; `open` takes this as its `opener`.

    Raises:
        OSError: There is a link, a pipe or a device in its place, which is neither read nor written.
    """
    no_link, no_wait = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))  # Windows has neither
    descriptor = os.open(path, flags | no_link | no_wait, 0o666)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(errno.EEXIST, "Not a regular file", path)
    return descriptor


def remove(path: Path) -> None:
    """Remove a folder, or a file or link in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
                with open(path, "rb+") as file:  # Windows flushes no file that is only read
                    os.fsync(file.fileno())

"""The run folder: one run at a time locks it before any work, and no run overwrites another."""

import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from timm_accel.atomic import open_own
from timm_accel.states.folder import STATES, state_folders

RUN_CONTENTS = ("history.csv", STATES, "best", "best_ema")
LOCK = "lock"
SPLIT = "split.csv"
RECIPE = "recipe.yaml"
_OF_A_START = (RECIPE, SPLIT, STATES)
_TOKEN = ".shared_"


def check_run_dir(run_dir: str | Path, contents: Iterable[str] = RUN_CONTENTS, *, argument: str = "run_dir") -> Path:
    """Create the folder if it does not exist, and return it as a `Path`.

    Args:
        run_dir: The folder.
        contents: The names that must not exist in it.
        argument: The name of the user's argument, for the messages.

    Raises:
        FileExistsError: It already holds a run.
        OSError: It cannot be created or written to.
    """
    folder = Path(run_dir)
    for name in contents:
        if os.path.lexists(folder / name):
            raise FileExistsError(
                f"Expected {argument} to hold no run yet, since runs are never overwritten, but got {str(run_dir)!r}, "
                f"which holds {name!r}. Name a new folder, move the old one away, or resume the run in it with "
                "resume_from='auto' (--resume auto on the command line)."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            f"Expected {argument} to be a folder that can be written to, but got {str(run_dir)!r} ({error.strerror}). "
            "Name another folder."
        ) from error
    return folder


def check_kind(path: Path, kind: str) -> None:
    """Check the place of a file or folder that a run writes; there may be nothing yet.

    A link there may lead to the files of something else. The run folder itself may be one.

    Args:
        path: The place.
        kind: ``file`` or ``folder``.

    Raises:
        FileExistsError: There is something else, such as a link.
    """
    if path.is_symlink():
        found, remedy = f"a link to {os.readlink(path)!r}", "Move it away; only the run folder itself may be a link."
    elif path.exists() and not (path.is_dir() if kind == "folder" else path.is_file()):
        found, remedy = "something else", "Move it away."
    else:
        return
    raise FileExistsError(f"Expected {str(path)!r} to be a {kind}, but got {found}. {remedy}")


class UnstartedRun:
    """Removes what the start of a run leaves in its folder where it is refused: the folder is as it was found.

    Args:
        run_dir: The run folder, before anything is written to it.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.folder = Path(run_dir)
        self._found = {name for name in _OF_A_START if os.path.lexists(self.folder / name)}
        self._missing = [each for each in (self.folder, *self.folder.parents) if not each.exists()]

    def undo(self) -> None:
        """Remove it, unless another run uses the folder or has saved a state there."""
        try:
            lock = lock_run_dir(self.folder) if self.folder.is_dir() else None
        except OSError:
            return
        if not any(state_folders(self.folder / STATES)):
            for name in _OF_A_START:
                path = self.folder / name
                if name not in self._found and path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif name not in self._found:
                    with suppress(OSError):  # the folder is a file, or cannot be written to: nothing was written
                        path.unlink(missing_ok=True)
        if lock is not None:
            unlock_run_dir(lock)
        for folder in self._missing:
            with suppress(OSError):  # it holds something else
                folder.rmdir()


def lock_run_dir(folder: Path) -> FileLock:
    """Lock the run folder for this process, until the lock is released or the process ends.

    Raises:
        BlockingIOError: Another run holds it; the message names its process.
        OSError: The file system has no locks, or something else is in the place of the lock.
    """
    path = folder / LOCK
    check_kind(path, "file")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except (Timeout, RuntimeError) as error:  # RuntimeError: held by this very process
        raise BlockingIOError(
            f"Expected one run at a time in {str(folder)!r}, but another uses it ({_holder(path)}"
        ) from error
    except OSError as error:  # such as ENOLCK of a network file system
        raise type(error)(
            error.errno,
            f"Expected run_dir to be on a file system with locks, since one run at a time may write there, but got "
            f"{str(folder)!r} ({error.strerror}). Name a folder on another disk, or mount it with locks",
        ) from error
    me = [str(os.getpid()), platform.node()]
    if _lines(path)[:2] != me:  # on a file system without flock filelock has written them, and looks for its file
        with suppress(OSError), open(path, "w", opener=open_own) as file:  # a full disk, or Windows: it names nobody
            file.write("\n".join([*me, ""]))
    return lock


def leave_token(folder: Path) -> str:
    """Create an empty file of a random name, by which other hosts know the folder, and return the name.

    Those that killed runs have left are removed. Only the holder of the lock may call it.
    """
    for left in folder.glob(f"{_TOKEN}*"):
        left.unlink(missing_ok=True)
    name = f"{_TOKEN}{secrets.token_hex(8)}"
    (folder / name).touch(exist_ok=False)
    return name


def _lines(path: Path) -> list[str]:
    with suppress(OSError), open(path, errors="replace", opener=open_own) as file:
        return file.read(1000).split("\n")
    return []


def _holder(path: Path) -> str:
    """Return who holds the lock and what to do, as the end of a sentence that began with a parenthesis."""
    match _lines(path):
        case [process, host, *_] if process.isdecimal() and host.isprintable() and host:
            remedy = "" if host == platform.node() else f" If it has ended with its machine, delete {str(path)!r}."
            return f"process {process} on {host}). Wait for it or end it, or name another folder.{remedy}"
    return (
        f"{str(path)!r} does not tell which process). Wait for it or end it, or name another folder; if no run uses "
        "the folder, delete that file."
    )


def unlock_run_dir(lock: FileLock) -> None:
    """Remove the lock file, where that is possible, and release the lock."""
    with suppress(OSError):  # Windows removes no open file
        Path(lock.lock_file).unlink()  # while it is held: a process that opened it meanwhile checks again
    lock.release()


def holder_of_run(folder: Path) -> str | None:
    """Return which process trains in a folder, as ``process 123 on HOST``; None if none does.

    The lock file of a killed run stays, so a process of this machine counts only if it began before the file.

    Args:
        folder: The folder of a run.
    """
    path = folder / LOCK
    match _lines(path):
        case [process, host, *_] if process.isdecimal() and host.isprintable() and host:
            if host == platform.node():
                try:
                    if psutil.Process(int(process)).create_time() > path.stat().st_mtime + 1:
                        return None
                except (psutil.Error, OSError):
                    return None
            return f"process {process} on {host}"
    return None


def why_no_weights(run: Path) -> str | None:
    """Return why the folder of a run has no best weights yet, and what to do, in words; None if it is no run.

    Args:
        run: A folder without best weights.
    """
    if (holder := holder_of_run(run)) is not None:
        return f"a run in progress ({holder}) before its first evaluation. Wait for that: it saves the weights."
    if any((run / name).exists() for name in ("recipe.yaml", "history.csv", STATES)):
        return (
            "a run that ended before its first evaluation or saves no best weights. Resume it with --resume auto, or "
            "train with SaveBestCallback."
        )
    return None

"""State folders. A state is written under a temporary name, flushed and renamed, so a kill leaves no partial state.

A state is ``state/SERIAL_epoch_E_batch_B/`` with ``common.pt``, one ``rank_R.pt`` for each process, and
``manifest.json``, which names every file's size and SHA-256, and has a SHA-256 itself. Higher serials are newer;
``state/latest`` holds the name of the newest, as a hint for people. The files hold only tensors and plain values, and
load with ``weights_only=True``. Files that never change once they are written are hard links to those of the state
before. The name of a state that is never deleted ends with ``_milestone``.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from timm_accel.atomic import atomic_write, open_own, remove
from timm_accel.states.background import closed_in_workers
from timm_accel.states.manifest import FORMAT, digest_of_file, read_manifest, signed
from timm_accel.states.saved_state import (
    COMMON,
    MANIFEST,
    DamagedStateError,
    SavedState,
    damaged,
    rank_file,
    refuse_link,
)

STATES = "state"
LATEST = "latest"
UNFINISHED = ".unfinished"
MILESTONE = "_milestone"
_NAME = re.compile(rf"(\d{{6,}})_epoch_\d+_batch_\d+({MILESTONE})?")


def write_state(
    root: Path,
    name: str,
    files: Mapping[str, Any],
    about: Mapping[str, Any],
    constant: Mapping[str, Callable[[], Any]] | None = None,
    before: SavedState | None = None,
    keep: int | None = None,
) -> SavedState:
    """Write a new state below `root`, flush it to the disk, and delete older ones.

    Removes what earlier writes left unfinished, and its partial folder if it fails.

    Args:
        root: The folder of states.
        name: The part of the folder's name after the serial.
        files: The content of each file.
        about: Plain values for the manifest.
        constant: What returns the content of each file that stays the same from one state to the next.
        before: The state that holds the constant files already, so that they are linked.
        keep: How many states to keep, as for `prune_states`; None for all.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    _remove_unfinished(root)
    serial = 1 + max((int(folder.name.split("_")[0]) for folder in state_folders(root)), default=0)
    folder = root / f"{serial:06d}_{name}{MILESTONE if about.get('milestone') else ''}"
    unfinished = folder.with_name(folder.name + UNFINISHED)
    try:
        unfinished.mkdir(parents=True)
        written = {}
        for file_name, make in (constant or {}).items():
            written[file_name] = _link(file_name, unfinished, before) or _write(unfinished / file_name, make())
        for file_name, content in files.items():
            written[file_name] = _write(unfinished / file_name, content)
        manifest = signed({"format": FORMAT, **about, "files": written})
        with open(unfinished / MANIFEST, "x") as text:  # no link in its place is followed
            json.dump(manifest, text, indent=2)
            _flush(text)
        flush_folder(unfinished)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    with suppress(OSError):  # the state is complete: a failure here does not change that
        flush_folder(root)
        _write_latest(root, folder.name)
    if keep is not None:
        prune_states(root, keep)
    return SavedState(folder, manifest)


def tidy_states(root: Path, newest: SavedState) -> None:
    """Clean up after a kill while a state was written or deleted. Only the holder of the lock may call it.

    Args:
        root: The folder of states.
        newest: The state that ``latest`` should name.
    """
    _remove_unfinished(root)
    with suppress(OSError):  # a read-only folder can still be read
        latest = root / LATEST
        if _named_by(latest) != newest.folder:
            _write_latest(root, newest.folder.name)


def _remove_unfinished(root: Path) -> None:
    for left in root.glob(f"*{UNFINISHED}"):
        with suppress(OSError):
            remove(left)


def _link(name: str, folder: Path, before: SavedState | None) -> list[Any] | None:
    """Link a file of the state before; return its size and SHA-256, or None where it has to be written."""
    entry = before and before.manifest["files"].get(name)
    if not entry or before is None:
        return None
    try:
        os.link(before.folder / name, folder / name)
    except OSError:  # that state was deleted, or the file system has no hard links
        return None
    return entry


def _write(path: Path, content: Any) -> list[Any]:
    with open(path, "xb") as file, closed_in_workers(file):
        _save(content, file)
        _flush(file)
    return [path.stat().st_size, digest_of_file(path)]


def _save(content: Any, file: Any) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # torch 2.14 closes its archive after a failed write, and hides the cause
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _write_latest(root: Path, name: str) -> None:
    latest = root / LATEST
    if latest.is_symlink():
        latest.unlink()  # one to a folder could not be replaced
    with atomic_write(latest) as unfinished:
        unfinished.write_text(f"{name}\n")


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Put a folder's entries on the disk; without it a renamed file may be gone after a power cut."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def state_folders(root: Path) -> list[Path]:
    """Return the complete states below `root`, the newest first."""
    folders = [path for path in root.glob("*_epoch_*_batch_*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.split("_")[0]), reverse=True)


def open_state(path: str | Path) -> SavedState:
    """Read a state's manifest.

    Args:
        path: The folder of a state, or the file ``latest`` beside it.

    Raises:
        ValueError: It is not a state, or one of a newer format.
        DamagedStateError: Its manifest cannot be read.
    """
    folder = Path(path)
    if folder.name == LATEST and (folder.is_file() or folder.is_symlink()):
        folder = _named_by(folder) or next(iter(state_folders(folder.parent)), folder)
    if _NAME.fullmatch(folder.name) and folder.is_symlink():
        raise DamagedStateError(
            f"Expected the state {str(folder)!r} to be a folder, but got a link to {os.readlink(folder)!r}. Name that "
            "folder, or put it in place of the link."
        )
    refuse_link(folder, MANIFEST)
    if not (folder / MANIFEST).is_file():
        if _NAME.fullmatch(folder.name) and os.path.lexists(folder):
            raise damaged(folder, MANIFEST, "is missing")
        raise ValueError(
            f"Expected a folder with a state, which holds {MANIFEST!r}, but got {str(path)!r}. "
            f"Name a folder in RUN_DIR/{STATES}, or pass 'auto'."
        )
    try:
        manifest = read_manifest(folder / MANIFEST)
    except ValueError as error:
        raise damaged(folder, MANIFEST, str(error)) from error
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"Expected a state of format {FORMAT} or older, but {str(folder)!r} has format {manifest['format']}, "
            f"written by timm_accel {_writer_of(manifest)}. Upgrade timm_accel."
        )
    ranks = [rank_file(rank) for rank in range(manifest["num_processes"])]
    if missing := [name for name in (COMMON, *ranks) if name not in manifest["files"]]:
        raise damaged(folder, MANIFEST, f"does not name {missing[0]!r}")
    return SavedState(folder, manifest)


def _named_by(latest: Path) -> Path | None:
    """Return the state that ``latest`` names; None where it names none."""
    try:
        with open(latest, errors="replace", opener=open_own) as file:
            name = file.read(1000).strip()
    except OSError:
        return None
    return latest.parent / name if _NAME.fullmatch(name) and (latest.parent / name).is_dir() else None


def _writer_of(manifest: Mapping[str, Any]) -> Any:
    versions = manifest.get("versions")
    return versions.get("timm_accel") if isinstance(versions, dict) else "of an unknown version"


def newest_state(root: Path, report: Callable[[str], None]) -> SavedState | None:
    """Return the newest complete state, and report each newer one that is damaged; return None without states.

    Raises:
        DamagedStateError: There are states, but all are damaged.
    """
    folders = state_folders(root)
    for folder in folders:
        try:
            state = open_state(folder)
            state.check()
            return state
        except DamagedStateError as error:
            report(f"{error} Trying the state before it.")
    if folders:
        raise DamagedStateError(
            f"Expected a complete state in {str(root)!r}, but got {len(folders)} damaged ones. Restore one of them, or "
            "start a new run in another folder."
        )
    return None


def whole_states(root: Path, epoch: int) -> Iterator[SavedState]:
    """Yield the undamaged states of the end of an epoch (from 1), the newest first."""
    for folder in state_folders(root):
        with suppress(ValueError):  # damaged, or of another version
            state = open_state(folder)
            progress = state.manifest["progress"]
            if (progress["epoch"], progress["batch"], progress["stage"]) == (epoch, 0, "train"):
                state.check()
                yield state


def prune_states(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` states; milestones do not count and stay."""
    ordinary = [folder for folder in state_folders(root) if not folder.name.endswith(MILESTONE)]
    for folder in ordinary[keep:]:
        try:
            if open_state(folder).manifest["milestone"]:  # of format 1
                continue
        except ValueError:
            continue  # damaged, or of another version: left for the user to look at
        doomed = folder.with_name(folder.name + UNFINISHED)  # complete or gone, never a partial state
        with suppress(OSError):  # in use, or on a read-only disk: the new state matters more
            folder.rename(doomed)
            shutil.rmtree(doomed)

"""State folders. A state is written under a temporary name, flushed and renamed, so a kill leaves no partial state.

A state is ``state/SERIAL_epoch_E_batch_B/`` with ``common.pt``, one ``rank_R.pt`` for each process, and
``manifest.json``, which names every file's size and SHA-256. Higher serials are newer; ``state/latest`` holds the name
of the newest. The files hold only tensors and plain values, and load with ``weights_only=True``.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 1
STATES = "state"
MANIFEST = "manifest.json"
COMMON = "common.pt"
LATEST = "latest"
UNFINISHED = ".unfinished"
_NAME = re.compile(r"(\d{6,})_epoch_\d+_batch_\d+")
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)


class DamagedStateError(ValueError):
    """A state exists, but one of its files is missing or changed."""


def rank_file(rank: int) -> str:
    """Return the name of the file with the part of a rank."""
    return f"rank_{rank}.pt"


def plain(value: Any, where: str) -> Any:
    """Return the value with numpy's numbers as python's numbers.

    Raises:
        TypeError: Something in it is neither a tensor nor a plain value, so that it would load only by running code.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _PLAIN or type(value) in (torch.Tensor, torch.nn.Parameter, Counter):
        return value
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        copied: Any = kind((plain(key, where), plain(item, f"{where}[{key!r}]")) for key, item in value.items())
        if hasattr(value, "_metadata"):  # torch's versions of the format of each module
            copied._metadata = value._metadata
        return copied
    if type(value) in (list, tuple, set):
        return type(value)(plain(item, where) for item in value)
    raise TypeError(
        f"Expected {where} to hold tensors and plain values, since a state must load without running code, but got "
        f"{type(value).__module__}.{type(value).__qualname__}. Turn it into numbers, text, lists or tensors in "
        "state_dict()."
    )


@dataclass(frozen=True)
class SavedState:
    """A complete state folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    def load(self, name: str) -> Any:
        """Return the content of one of its files, on the CPU."""
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)

    def check(self) -> None:
        """Compare every file with the manifest.

        Raises:
            DamagedStateError: A file is missing, truncated or changed; the message names it.
        """
        for name, (size, digest) in self.manifest["files"].items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise self._damaged(name, "is missing" if found is None else f"has {found} bytes instead of {size}")
            if _digest(path) != digest:
                raise self._damaged(name, "has changed since it was written (its SHA-256 differs)")

    def _damaged(self, name: str, how: str) -> DamagedStateError:
        return DamagedStateError(
            f"Expected the state {str(self.folder)!r} to be complete, but {name!r} {how}. Use another state."
        )


def write_state(root: Path, name: str, files: Mapping[str, Any], about: Mapping[str, Any]) -> SavedState:
    """Write a new state below `root`, and flush it to the disk.

    Removes what earlier writes left unfinished, and its partial folder if it fails.

    Args:
        root: The folder of states.
        name: The part of the folder's name after the serial.
        files: The content of each file.
        about: Plain values for the manifest.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    _remove_unfinished(root)
    serial = 1 + max((int(folder.name.split("_")[0]) for folder in state_folders(root)), default=0)
    folder = root / f"{serial:06d}_{name}"
    unfinished = folder.with_name(folder.name + UNFINISHED)
    try:
        unfinished.mkdir(parents=True)
        for file_name, content in files.items():
            with open(unfinished / file_name, "wb") as file:
                _save(content, file)
                _flush(file)
        written = {
            file_name: [(unfinished / file_name).stat().st_size, _digest(unfinished / file_name)] for file_name in files
        }
        manifest = {"format": FORMAT, **about, "files": written}
        with open(unfinished / MANIFEST, "w") as text:
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
        if not latest.is_file() or latest.read_text().strip() != newest.folder.name:
            _write_latest(root, newest.folder.name)


def _remove_unfinished(root: Path) -> None:
    for left in root.glob(f"*{UNFINISHED}"):
        shutil.rmtree(left, ignore_errors=True)


def _save(content: Any, file: Any) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # torch 2.14 closes its archive after a failed write, and hides the cause
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _write_latest(root: Path, name: str) -> None:
    new = root / f".{LATEST}"
    with open(new, "w") as file:
        file.write(name + "\n")
        _flush(file)
    new.replace(root / LATEST)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Put a folder's entries on the disk; without it a renamed file may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    if folder.name == LATEST and folder.is_file():
        folder = folder.parent / folder.read_text().strip()
    if not (folder / MANIFEST).is_file():
        if _NAME.fullmatch(folder.name) and folder.is_dir():
            raise DamagedStateError(
                f"Expected the state {str(folder)!r} to be complete, but {MANIFEST!r} is missing. Use another state."
            )
        raise ValueError(
            f"Expected a folder with a state, which holds {MANIFEST!r}, but got {str(path)!r}. "
            f"Name a folder in RUN_DIR/{STATES}, or pass 'auto'."
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedStateError(
            f"Expected the state {str(folder)!r} to be complete, but {MANIFEST!r} cannot be read ({error}). "
            "Use another state."
        ) from error
    if version > FORMAT:
        raise ValueError(
            f"Expected a state of format {FORMAT} or older, but {str(folder)!r} has format {version}, written by "
            f"timm_accel {manifest.get('versions', {}).get('timm_accel')}. Upgrade timm_accel."
        )
    return SavedState(folder, manifest)


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


def prune_states(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` states; milestones do not count and stay."""
    ordinary = []
    for folder in state_folders(root):
        try:
            milestone = open_state(folder).manifest.get("milestone", False)
        except ValueError:
            continue  # damaged, or of another version: left for the user to look at
        if not milestone:
            ordinary.append(folder)
    for folder in ordinary[keep:]:
        doomed = folder.with_name(folder.name + UNFINISHED)  # complete or gone, never a partial state
        with suppress(OSError):  # in use, or on a read-only disk: the new state matters more
            folder.rename(doomed)
            shutil.rmtree(doomed)

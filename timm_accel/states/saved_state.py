"""A complete state: it is compared with its manifest while it is read, so that both take the time of the slower one."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from timm_accel.states.manifest import digest_of_file

MANIFEST = "manifest.json"
COMMON = "common.pt"


class DamagedStateError(ValueError):
    """A state exists, but one of its files is missing or changed."""


def rank_file(rank: int) -> str:
    """Return the name of the file with the part of a rank."""
    return f"rank_{rank}.pt"


@dataclass(frozen=True)
class SavedState:
    """A complete state folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]
    _read: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # by `check`

    def load(self, name: str) -> Any:
        """Return the content of one of its files, on the CPU."""
        return self._read.pop(name) if name in self._read else self._load(name)

    def _load(self, name: str) -> Any:
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)

    def check(self) -> None:
        """Compare every file with the manifest, and read ``common.pt`` meanwhile, so that `load` has it.

        Raises:
            DamagedStateError: A file is missing, truncated, changed or superfluous; the message names it.
        """
        if odd := sorted(name for name in os.listdir(self.folder) if not self._may_hold(name)):
            raise damaged(self.folder, odd[0], "is no file of it. Remove that file")
        files = self.manifest["files"]
        for name, (size, _) in files.items():
            path = self.folder / name
            refuse_link(self.folder, name)
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                how = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise damaged(self.folder, name, how)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            digests = {name: threads.submit(digest_of_file, self.folder / name) for name in files}
            with suppress(Exception):  # of a damaged file, which its digest tells
                self._read[COMMON] = self._load(COMMON)
        for name, digest in digests.items():
            self._compare(name, digest.result)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_read": {}}  # other processes read the files themselves

    def _compare(self, name: str, digest: Callable[[], str]) -> None:
        try:
            is_same = digest() == self.manifest["files"][name][1]
        except OSError as error:
            raise damaged(self.folder, name, f"cannot be read ({error.strerror})") from error
        if not is_same:
            raise damaged(self.folder, name, "has changed since it was written (its SHA-256 differs)")

    def _may_hold(self, name: str) -> bool:
        return name == MANIFEST or name in self.manifest["files"] or name.startswith(".")  # of a file manager, or NFS


def damaged(folder: Path, name: str, how: str) -> DamagedStateError:
    """Return the error that tells which file of a state is damaged, and how."""
    return DamagedStateError(
        f"Expected the state {str(folder)!r} to be complete, but {name!r} {how}. Use another state."
    )


def refuse_link(folder: Path, name: str) -> None:
    """Raise a `DamagedStateError` for a link, whose file may change or vanish without the state."""
    if (folder / name).is_symlink():
        raise damaged(folder, name, "is a link")

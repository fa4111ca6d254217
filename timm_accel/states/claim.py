"""The claim of a run on its folder: rank 0 locks it, and finds the state in it that the run resumes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from timm_accel.distributed.consensus import on_main_process
from timm_accel.states.folder import STATES, newest_state, open_state, tidy_states
from timm_accel.states.run_dir import (
    RUN_CONTENTS,
    check_kind,
    check_run_dir,
    leave_token,
    lock_run_dir,
    unlock_run_dir,
)
from timm_accel.states.saved_state import MANIFEST, SavedState

LISTINGS = "data"
"""The folder beside the states that holds the lists of images."""


class Claim:
    """What a run holds of its folder, from `find` to `release`.

    Args:
        run_dir: The run folder; None for a run without one.
        resume_from: ``"auto"``, the path of a state, or None.
        report: Called with a sentence.
    """

    def __init__(self, run_dir: Path | None, resume_from: str | Path | None, report: Callable[[str], None]) -> None:
        self.run_dir, self.resume_from, self.report = run_dir, resume_from, report
        self._lock: Any = None  # on rank 0
        self._token: str | None = None
        self._state: SavedState | None = None

    def find(self, accelerator: Accelerator, *, on_hosts: bool) -> SavedState | None:
        """Lock the folder, and return the state that the run resumes from. Collective.

        Args:
            accelerator: accelerate's `Accelerator`.
            on_hosts: Whether there are other hosts, which look for what rank 0 leaves in the folder.
        """
        if self.resume_from not in (None, "auto"):
            self._state = on_main_process(accelerator, self._open)
        if self.run_dir is not None:
            self._token = on_main_process(accelerator, lambda: self._claim(on_hosts))
        if self.resume_from == "auto":
            self._state = on_main_process(accelerator, self._newest)
        if self._state is not None and not accelerator.is_main_process:  # the folder may have another name here
            self._state = SavedState(self._root() / self._state.folder.name, self._state.manifest)
        return self._state

    def shared_paths(self) -> list[Path]:
        """Return what each host must find, where it looks for the folder and for the state."""
        paths = [] if self._token is None or self.run_dir is None else [self.run_dir / self._token]
        return paths if self._state is None else [*paths, self._state.folder / MANIFEST]

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self.remove_token()
            unlock_run_dir(self._lock)

    def remove_token(self) -> None:
        """Remove what the hosts have looked for."""
        if self._lock is not None and self._token is not None and self.run_dir is not None:
            (self.run_dir / self._token).unlink(missing_ok=True)

    def _open(self) -> SavedState:
        assert self.resume_from is not None
        state = open_state(self.resume_from)
        state.check()
        return state

    def _claim(self, on_hosts: bool) -> str | None:
        assert self.run_dir is not None
        states = self.run_dir / STATES
        for folder in (states, states / LISTINGS):
            check_kind(folder, "folder")
        within = self.resume_from == "auto" or states.resolve() in Path(self.resume_from or "").resolve().parents
        contents = () if self.resume_from is not None and within and states.is_dir() else RUN_CONTENTS
        self._lock = lock_run_dir(check_run_dir(self.run_dir, contents))
        return leave_token(self.run_dir) if on_hosts else None

    def _newest(self) -> SavedState | None:
        state = newest_state(self._root(), self.report)
        if state is not None:
            tidy_states(self._root(), state)
        return state

    def _root(self) -> Path:
        """Return the folder of the state, as this process names it."""
        if self.resume_from == "auto":
            assert self.run_dir is not None
            return self.run_dir / STATES
        return Path(self.resume_from or "").parent

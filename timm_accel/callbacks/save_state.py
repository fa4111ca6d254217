"""Save states that a run can resume from."""

import os
import time
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.callbacks.base import Callback
from timm_accel.data.identity.listing import FILE_CHECKS
from timm_accel.distributed.consensus import Stop, on_main_process
from timm_accel.states.folder import MILESTONE, STATES, prune_states, state_folders

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class SaveStateCallback(Callback):
    """Save the state of the run into ``state/`` of the run folder, for ``train(resume_from="auto")``.

    With it, SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and SIGHUP end the run at the next sync point, with a state and exit code
    75. A state is always saved at the end of the run. It is that of a complete update or epoch, so that a resumed run
    computes the same bits. Rank 0 copies it into memory that it keeps, and writes the copy in the background; the next
    state and the end of the run wait for that.

    Args:
        every_n_epochs: Epochs between two states; None for none at the ends of epochs.
        every_n_updates: Optimizer updates between two states within the run; None for none.
        every_minutes: Minutes between two states within the run; None for none.
        keep: The number of states to keep; older ones are deleted.
        milestone_every_n_epochs: Epochs between two states that are never deleted; None for none.
        data_identity: How a resumed run finds files that changed: by their sizes and times (``"stat"``) or by their
            ``"contents"``; None for sizes and times of up to 100,000 files. Paths and labels are always compared.
        keep_when_done: The number of states to keep when the run is finished, at most `keep`; milestones stay too.

    Raises:
        ValueError: A number is too small, `data_identity` is unknown, or the trainer has no ``run_dir``.
        TypeError: At the start, if something to be saved is neither a tensor nor a plain value.
    """

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_updates: int | None = None,
        every_minutes: float | None = None,
        keep: int = 3,
        milestone_every_n_epochs: int | None = None,
        data_identity: str | None = None,
        keep_when_done: int = 1,
    ) -> None:
        counts = {
            "every_n_epochs": every_n_epochs,
            "every_n_updates": every_n_updates,
            "keep": keep,
            "keep_when_done": keep_when_done,
            "milestone_every_n_epochs": milestone_every_n_epochs,
        }
        for name, count in counts.items():
            needed = count is not None or name in ("keep", "keep_when_done")
            if not (isinstance(count, int | Integral) and count >= 1) and needed:
                raise ValueError(f"Expected {name} to be an integer of at least 1, but got {count!r}. Choose another.")
        if every_minutes is not None and not (isinstance(every_minutes, int | float | Real) and every_minutes > 0):
            raise ValueError(f"Expected every_minutes to be positive, but got {every_minutes!r}. Choose another.")
        if data_identity not in (None, *FILE_CHECKS):
            raise ValueError(
                f"Expected data_identity to be None or one of {FILE_CHECKS}, but got {data_identity!r}. Choose one of "
                "them."
            )
        self.data_identity = data_identity
        self.every_n_epochs, self.every_n_updates, self.every_minutes = every_n_epochs, every_n_updates, every_minutes
        self.keep, self.keep_when_done, self.milestone_every_n_epochs = keep, keep_when_done, milestone_every_n_epochs

    def on_init_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.run_dir is None:
            raise ValueError(
                "Expected SaveStateCallback to have a folder, but got no run_dir of the trainer. "
                "Pass run_dir to the trainer."
            )
        trainer.keep_states, trainer.data_identity = self.keep, self.data_identity

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._last_request = time.monotonic()

    def on_update_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if self.every_n_updates is not None and trainer.current_run().num_updates % self.every_n_updates == 0:
            self._request(trainer, everywhere=True)
        elif self.every_minutes is not None and time.monotonic() - self._last_request >= 60 * self.every_minutes:
            self._request(trainer)  # the clocks of the ranks differ

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        done = trainer.current_run().epochs_done + 1
        milestone = self.milestone_every_n_epochs is not None and done % self.milestone_every_n_epochs == 0
        due = self.every_n_epochs is not None and done % self.every_n_epochs == 0
        if milestone or due or done == trainer.run_config.num_epochs:
            self._request(trainer, everywhere=True, milestone=milestone)

    def on_training_run_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().agreed.stop in (Stop.INTERRUPTED, Stop.FAILED):
            return
        assert trainer.run_dir is not None
        root = trainer.run_dir / STATES

        def tidy() -> tuple[int, int]:
            last_is_milestone = any(folder.name.endswith(MILESTONE) for folder in state_folders(root)[:1])
            prune_states(root, min(self.keep, self.keep_when_done - last_is_milestone))
            return len(state_folders(root)), _bytes_below(root)

        count, size = on_main_process(trainer.current_run().accelerator, tidy)
        trainer.print(f"The states take {size / 1e6:.1f} MB ({count} in {str(root)!r}).")

    def _request(self, trainer: "LoopTrainer", **how: bool) -> None:
        trainer.request_save(**how)
        self._last_request = time.monotonic()


def _bytes_below(root: Path) -> int:
    """Return the bytes of all files below a folder; a file with several names counts once."""
    sizes = {}
    for path in root.rglob("*"):
        with suppress(OSError):  # deleted meanwhile
            found = os.lstat(path)
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())

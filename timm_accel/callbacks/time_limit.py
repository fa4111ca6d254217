"""End a run within a time limit, with a state to resume from."""

import time
from numbers import Real
from typing import TYPE_CHECKING, Any

from timm_accel.callbacks.base import Callback

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class TimeLimitCallback(Callback):
    """Interrupt the run after some minutes: it writes a state, and the processes exit with code 75.

    The time counts from the creation of the trainer on any process; the run ends at the next sync point, or after the
    current evaluation.

    Args:
        max_minutes: The limit; None for none.

    Raises:
        ValueError: The limit is not positive, or the trainer has no ``run_dir``.
    """

    def __init__(self, max_minutes: float | None) -> None:
        if max_minutes is not None and not (isinstance(max_minutes, int | float | Real) and max_minutes > 0):
            raise ValueError(f"Expected max_minutes to be positive, but got {max_minutes!r}. Choose another.")
        self.max_minutes = max_minutes

    def on_init_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.run_dir is None and self.max_minutes is not None:
            raise ValueError(
                "Expected TimeLimitCallback to have a folder for the state, but got no run_dir of the trainer. "
                "Pass run_dir to the trainer."
            )
        self._created = time.monotonic()

    def on_update_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if self.max_minutes is not None and time.monotonic() - self._created >= 60 * self.max_minutes:
            trainer.request_stop(f"Reached the limit of {self.max_minutes} minutes.", interrupted=True)

    on_training_run_epoch_end = on_update_end

"""Stop when a metric no longer improves."""

from typing import TYPE_CHECKING, Any

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.recorded_metrics import is_better
from timm_accel.messages import counted

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class EarlyStoppingCallback(Callback):
    """End the run after `patience` epochs without an improvement; an epoch without evaluation does not count.

    Args:
        watch_metric: The metric to judge by.
        greater_is_better: Whether higher values are better.
        patience: Epochs without an improvement after which to stop.
        min_delta: The smallest change that counts as an improvement.

    Raises:
        ValueError: `patience` is below 1; or, at the start, the run does not record the metric.
    """

    def __init__(
        self,
        watch_metric: str = "eval_loss_epoch",
        greater_is_better: bool = False,
        patience: int = 5,
        min_delta: float = 0.0,
    ) -> None:
        if patience < 1:
            raise ValueError(f"Expected patience to be at least 1 epoch, but got {patience!r}. The default is 5.")
        self.watch_metric, self.greater_is_better = watch_metric, greater_is_better
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.epochs_without = 0

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self.best, self.epochs_without = None, 0
        self._restarts = trainer.current_run().has_other_evaluation
        trainer.check_metric("watch_metric", self.watch_metric)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and the number of epochs since then."""
        return {"best": self.best, "epochs_without": self.epochs_without}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count from there, unless the evaluation images are others now."""
        if self._restarts:
            return
        self.best, self.epochs_without = state_dict["best"], state_dict["epochs_without"]

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().skips_evaluation:
            return
        value = trainer.latest_metric("watch_metric", self.watch_metric)
        if is_better(value, self.best, self.greater_is_better, self.min_delta):
            self.best, self.epochs_without = value, 0
        else:
            self.epochs_without += 1
        if self.epochs_without >= self.patience:
            trainer.request_stop(
                f"Stopped early: {self.watch_metric} has not improved on {self.best} for "
                f"{counted(self.patience, 'epoch')}."
            )

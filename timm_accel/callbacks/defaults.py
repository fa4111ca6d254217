"""The callbacks that a `LoopTrainer` has by default."""

import time
from typing import TYPE_CHECKING, Any

from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from tqdm import tqdm

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.recorded_metrics import FreshMetrics, readable
from timm_accel.callbacks.unreadable_images import UnreadableImagesCallback, images_read
from timm_accel.states.weights import EMA_MODEL, metric_prefix

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class MoveModulesToDeviceCallback(Callback):
    """Move the trainer's modules (losses, metrics) to its device, except the model and EMA models with a set device.

    Replaces upstream's callback of the same name, which also moves an EMA model that belongs on the CPU, and evaluates
    every property of the trainer (pytorch-accelerated 0.1.61).
    """

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        for name, module in vars(trainer).items():
            placed = isinstance(module, ModelEmaV2 | ModelEmaV3) and module.device is not None
            if isinstance(module, nn.Module) and name != "model" and not placed:
                module.to(trainer.device)

    on_evaluation_run_start = on_training_run_start


class StopOnNonFiniteLossCallback(Callback):
    """End the run with an error after a NaN or infinite loss.

    Checks only at sync points, after every ``trainer.sync_every_n_updates`` updates, and at the end of each epoch and
    evaluation, so that no step waits for the device.

    Replaces upstream's ``TerminateOnNaNCallback``, which reads every loss back, raises on one rank only and calls
    ``sys.exit`` (pytorch-accelerated 0.1.61).
    """

    def on_update_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().num_updates % trainer.sync_every_n_updates == 0:
            self._check(trainer, "training")

    def on_train_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._check(trainer, "training")

    def on_eval_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._check(trainer, "evaluation")

    def _check(self, trainer: "LoopTrainer", phase: str) -> None:
        if not trainer.current_run().running_loss.finite():
            run = trainer.current_run()
            where = "" if run.epoch is None else f" in epoch {run.epoch + 1}"
            trainer.request_stop(
                f"Expected the {phase} loss to be finite, but it is not{where}, after {run.num_updates} updates. "
                "Lower the learning rate, clip gradients, or look for broken data.",
                failed=True,
            )


class ProgressBarCallback(Callback):
    """Show one bar for each training epoch and each evaluation, on local rank 0 of each machine."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def _open(self, trainer: "LoopTrainer", what: str, loader: Any, done: int = 0) -> None:
        run = trainer.current_run()
        epoch = "" if run.epoch is None else f" {run.epoch + 1}/{trainer.run_config.num_epochs}"
        hidden = not run.accelerator.is_local_main_process
        self.bar = tqdm(total=len(loader), initial=done, desc=f"{what}{epoch}", disable=hidden, leave=False)

    def _advance(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def _close(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_train_epoch_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._open(trainer, "train", trainer.current_run().train_dataloader, trainer.current_run().batches_done)

    def on_eval_epoch_start(self, trainer: "LoopTrainer", is_intermediate: bool = False, **kwargs: Any) -> None:
        if not is_intermediate:  # the bar of the training epoch is still open
            self._open(trainer, "evaluate", trainer.current_run().eval_dataloader)

    def on_eval_step_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().batch_index is None:
            self._advance(trainer)

    def on_eval_epoch_end(self, trainer: "LoopTrainer", is_intermediate: bool = False, **kwargs: Any) -> None:
        if not is_intermediate:
            self._close(trainer)

    on_train_step_end = _advance
    on_train_epoch_end = on_stop_training_error = _close


class PrintMetricsCallback(Callback):
    """Print one line for each epoch: the learning rate, every metric recorded in it, and its duration."""

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._metrics, self._started = FreshMetrics(trainer.run_history), time.perf_counter()

    on_evaluation_run_start = on_training_run_start

    def state_dict(self) -> dict[str, Any]:
        """Return which metrics were printed."""
        return self._metrics.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Print only metrics that are recorded later."""
        self._metrics.load_state_dict(state_dict)

    def on_train_epoch_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        epochs = trainer.run_config.num_epochs
        title = f"epoch {trainer.run_history.current_epoch:>{len(str(epochs))}}/{epochs}"
        self._print(trainer, title, trainer.current_run().epoch_learning_rate)

    def on_evaluation_run_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._print(trainer, "evaluation")

    def _print(self, trainer: "LoopTrainer", title: str, learning_rate: float | None = None) -> None:
        fresh = self._metrics.take(trainer.run_history)
        columns = [title] if learning_rate is None else [title, f"lr {learning_rate:.3g}"]
        prefix = metric_prefix(EMA_MODEL)
        for name in sorted(fresh, key=_training_first):
            if name.removeprefix(prefix) in fresh and name.startswith(prefix):
                continue  # is printed beside that of the model
            ema = f" (ema {readable(fresh[prefix + name])})" if prefix + name in fresh else ""
            columns.append(f"{name.removesuffix('_epoch')} {readable(fresh[name])}{ema}")
        if read := images_read(trainer.eval_dataset):
            columns.append(f"on {read}")
        trainer.print("  ".join([*columns, f"{time.perf_counter() - self._started:.1f} s"]))


def _training_first(name: str) -> tuple[bool, bool, str]:
    return not name.startswith("train"), "loss" not in name, name


DEFAULT_CALLBACKS = (
    MoveModulesToDeviceCallback,
    StopOnNonFiniteLossCallback,
    UnreadableImagesCallback,
    ProgressBarCallback,
    PrintMetricsCallback,
)

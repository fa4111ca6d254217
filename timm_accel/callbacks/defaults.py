"""The callbacks that a `LoopTrainer` has by default."""

from typing import TYPE_CHECKING, Any

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.output.print_metrics import PrintMetricsCallback
from timm_accel.callbacks.output.progress_bar import ProgressBarCallback
from timm_accel.callbacks.unreadable_images import UnreadableImagesCallback
from timm_accel.messages import counted

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
    evaluation. On a GPU a sync point checks the loss of the one before, so that no update waits for the device.

    Replaces upstream's ``TerminateOnNaNCallback``, which reads every loss back, raises on one rank only and calls
    ``sys.exit`` (pytorch-accelerated 0.1.61).
    """

    def on_update_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        run = trainer.current_run()
        if run.num_updates % trainer.sync_every_n_updates == 0:
            loss, reason = run.running_loss, _not_finite(trainer, "training")

            def look(read: torch.Tensor) -> None:
                if not loss.is_finite(read):
                    trainer.request_stop(reason, failed=True)

            run.late_reads.begin(loss.sum_and_weight(), look)

    def on_train_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._check(trainer, "training")

    def on_eval_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._check(trainer, "evaluation")

    def _check(self, trainer: "LoopTrainer", phase: str) -> None:
        if not trainer.current_run().running_loss.finite():
            trainer.request_stop(_not_finite(trainer, phase), failed=True)


def _not_finite(trainer: "LoopTrainer", phase: str) -> str:
    """Return the sentence about a loss that is not finite after the current update."""
    run = trainer.current_run()
    where = "" if run.epoch is None else f" in epoch {run.epoch + 1}"
    return (
        f"Expected the {phase} loss to be finite, but it is not{where}, after {counted(run.num_updates, 'update')}. "
        "Lower the learning rate, clip gradients, or look for broken data."
    )


DEFAULT_CALLBACKS = (
    MoveModulesToDeviceCallback,
    StopOnNonFiniteLossCallback,
    UnreadableImagesCallback,
    ProgressBarCallback,
    PrintMetricsCallback,
)
"""The callbacks of a trainer that is created without others; `[*DEFAULT_CALLBACKS, …]` adds to them."""

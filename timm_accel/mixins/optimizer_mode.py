"""Optimizers with a training mode and an evaluation mode, such as those of the package ``schedulefree``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from timm_accel.training import LoopTrainer


class OptimizerModeMixin(LoopTrainer):
    """Call the optimizer's ``train()`` before each training epoch, and its ``eval()`` once that has ended.

    Evaluation, the best weights and states between epochs then have the evaluation weights; a state within an epoch
    has the training weights, and the optimizer's mode. After an evaluation within an epoch, training continues with
    the same bits. Does nothing with other optimizers.

    EMA weights (`ModelEmaMixin`) and BatchNorm's statistics follow the training weights; such optimizers are made
    for neither. The slow weights of timm's ``Lookahead`` around one follow the training weights too, so
    `LookaheadMixin` comes before this mixin.

    Source: The Road Less Scheduled, arXiv 2405.15682; ``schedulefree`` 1.4.
    """

    _evaluation_within_epoch = ExitStack()

    def _optimizer_with_modes(self) -> Any:
        optimizer: Any = self.current_run().unwrapped_optimizer
        optimizer = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead has no modes
        return optimizer if callable(getattr(optimizer, "train", None)) else None

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        if optimizer := self._optimizer_with_modes():
            optimizer.train()

    def train_epoch_end(self) -> None:
        if optimizer := self._optimizer_with_modes():
            optimizer.eval()
        super().train_epoch_end()

    def eval_epoch_start(self) -> None:
        super().eval_epoch_start()
        self._evaluation_within_epoch = ExitStack()
        if (optimizer := self._optimizer_with_modes()) and self.current_run().batch_index is not None:
            self._evaluation_within_epoch.enter_context(_evaluation_mode(optimizer))

    def eval_epoch_end(self) -> None:
        self._evaluation_within_epoch.close()
        super().eval_epoch_end()

    def training_run_end(self) -> None:
        if optimizer := self._optimizer_with_modes():
            optimizer.eval()  # a run may end within an epoch
        super().training_run_end()


@contextmanager
def _evaluation_mode(optimizer: Any) -> Iterator[None]:
    """Switch to evaluation and back with the same bits; a backward pass that is still to come does not notice."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    # upstream evaluates between forward and backward (pytorch-accelerated 0.1.61)
    with torch.autograd._unsafe_preserve_version_counter(tuple(parameters)):
        optimizer.eval()
        yield
        optimizer.train()  # it rounds, so the weights are restored
        with torch.no_grad():
            for parameter, weight in zip(parameters, kept, strict=True):
                parameter.copy_(weight)

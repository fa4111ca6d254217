"""A separate loss for evaluation."""

from collections.abc import Callable
from typing import Any

import torch

from timm_accel.losses.softmax import refuse_integer_labels
from timm_accel.training import LoopTrainer


class EvalLossMixin(LoopTrainer):
    """Evaluate with a plain loss where the training loss needs soft targets.

    `evaluation_loss` does not call ``super()`` if a loss was given: it replaces the loss.

    Args:
        eval_loss_fn: Called with (logits ``(B, num_classes)``, targets ``(B,)``); returns the mean loss. None evaluates
            with the training loss.
    """

    def __init__(self, *args: Any, eval_loss_fn: Callable[..., torch.Tensor] | None = None, **kwargs: Any) -> None:
        self.eval_loss_fn = eval_loss_fn
        super().__init__(*args, **kwargs)

    def evaluation_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.eval_loss_fn is None:
            return super().evaluation_loss(outputs, targets)
        refuse_integer_labels("eval_loss_fn", self.eval_loss_fn, targets)
        return self.eval_loss_fn(outputs, targets)

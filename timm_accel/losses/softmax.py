"""Losses over a softmax, which treat multi-label targets as the shares of one label."""

from typing import Any

import torch
from timm.loss import (
    AsymmetricLossSingleLabel,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    PolyCrossEntropy,
    SoftTargetCrossEntropy,
)
from torch import nn

from timm_accel.data.classes import is_multi_label

_SOFTMAX = (
    nn.CrossEntropyLoss,
    SoftTargetCrossEntropy,
    LabelSmoothingCrossEntropy,
    PolyCrossEntropy,
    AsymmetricLossSingleLabel,
    JsdCrossEntropy,
)


def refuse_integer_labels(argument: str, loss: Any, targets: Any) -> None:
    """Raise when timm's soft-target loss is given integer labels: it would broadcast them over the logits.

    Args:
        argument: The name of the user's argument, for the message.
        loss: The loss.
        targets: The targets of a batch.

    Raises:
        ValueError: The loss takes targets ``(B, num_classes)``, and these are integers ``(B,)``.
    """
    if isinstance(loss, SoftTargetCrossEntropy) and isinstance(targets, torch.Tensor) and targets.ndim == 1:
        raise ValueError(
            f"Expected {argument} to take integer labels {tuple(targets.shape)}, but got SoftTargetCrossEntropy, which "
            "takes (B, num_classes). For evaluation pass eval_loss_fn=nn.CrossEntropyLoss(); in training use Mixup."
        )


def refuse_softmax_loss(argument: str, loss: Any, *datasets: Any) -> None:
    """Raise when a loss over a softmax is used on a multi-label dataset.

    Most of these losses would run on it without an error, and training would go wrong.

    Args:
        argument: The name of the user's argument, for the message.
        loss: The loss.
        *datasets: The datasets of the loss.

    Raises:
        ValueError: The loss is over a softmax, and a dataset is multi-label.
    """
    if isinstance(loss, _SOFTMAX) and any(map(is_multi_label, datasets)):
        raise ValueError(
            f"Expected {argument} to judge each class by itself, since the dataset is multi-label, but got "
            f"{type(loss).__name__}, which is over a softmax. Use timm_accel.losses.create_loss('bce', dataset=…)."
        )

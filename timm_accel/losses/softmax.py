"""Losses over a softmax, which treat multi-label targets as the shares of one label."""

from typing import Any

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

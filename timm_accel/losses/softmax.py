"""Losses over a softmax, which take several labels of an image for shares of one."""

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
    """Raise when a loss over a softmax is to be used on a dataset of several labels an image.

    Most of them would compute something, and the model would learn it.

    Args:
        argument: What the user calls the loss, for the message.
        loss: The loss.
        *datasets: What it is used on.

    Raises:
        ValueError: The two do not go together.
    """
    if isinstance(loss, _SOFTMAX) and any(map(is_multi_label, datasets)):
        raise ValueError(
            f"Expected {argument} to judge each label by itself, since the images have several, but got "
            f"{type(loss).__name__}, which is over a softmax. Use timm_accel.losses.create_loss('bce', dataset=…)."
        )

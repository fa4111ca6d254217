"""Metrics of single-label images from counts that are linear in the classes, and that no device is waited for."""

from typing import Any

import torch
from torchmetrics import Metric

NO_LABEL = -1  # a negative label does not count


class TopKAccuracy(Metric):
    """The share of labels that are among the top-k predictions; negative labels do not count.

    torchmetrics' metric (1.9) makes a one-hot matrix of every batch, and waits for the device to leave labels out.

    Args:
        top_k: How many classes are looked at.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    correct: torch.Tensor
    total: torch.Tensor

    def __init__(self, top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top_k = top_k
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: logits ``(B, num_classes)``, labels ``(B,)``."""
        top = logits.argmax(1, keepdim=True) if self.top_k == 1 else logits.topk(self.top_k, dim=1).indices
        self.correct.add_((top == labels[:, None]).sum())  # an assignment passes through two modules
        self.total.add_((labels >= 0).sum())

    def compute(self) -> torch.Tensor:
        """Return the share; 0 without labels."""
        return self.correct.float() / self.total.clamp(min=1)


class MacroF1(Metric):
    """The mean F1 of the classes that occur, as label or prediction; negative labels do not count.

    Memory and time are linear in the classes: torchmetrics' metric (1.9) makes a confusion matrix of every batch.

    Args:
        num_classes: The number of classes.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    right: torch.Tensor
    predicted: torch.Tensor
    actual: torch.Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("right", "predicted", "actual"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: logits ``(B, num_classes)``, labels ``(B,)``."""
        predictions, kept = logits.argmax(1), (labels >= 0).long()
        labels = labels.long().clamp(min=0)
        self.predicted.index_add_(0, predictions, kept)  # torch.bincount would wait for the device
        self.actual.index_add_(0, labels, kept)
        self.right.index_add_(0, labels, kept * (predictions == labels))

    def compute(self) -> torch.Tensor:
        """Return the mean over the classes; 0 without labels."""
        either = self.predicted + self.actual  # 2 tp + fp + fn
        scores = 2 * self.right.float() / either.clamp(min=1)
        return scores.sum() / (either > 0).sum().clamp(min=1)

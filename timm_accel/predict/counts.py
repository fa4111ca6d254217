"""Metrics of single-label images from counts that are linear in the classes, and that no device is waited for.

They need no torchmetrics, whose import takes 2 s of processor time (1.9, with scipy and matplotlib).
"""

from copy import deepcopy
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

NO_LABEL = -1  # a negative label does not count
MIN_TOP_5_CLASSES = 6  # with fewer classes every label is among five of them


class _Counts(nn.Module):
    """Counts of images, named and shaped by the arguments."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64), persistent=False)

    @property
    def metric_state(self) -> dict[str, Tensor]:
        """The counts by name, as in torchmetrics."""
        return dict(self.named_buffers())


def in_top_k(logits: Tensor, labels: Tensor, top_k: int) -> Tensor:
    """Return whether each label, ``(B,)``, is among the top-k of its logits, ``(B, num_classes)``."""
    top = logits.argmax(1, keepdim=True) if top_k == 1 else logits.topk(top_k, dim=1).indices
    return (top == labels[:, None]).any(1)


class TopKAccuracy(_Counts):
    """The share of labels that are among the top-k predictions; negative labels do not count.

    torchmetrics' metric (1.9) makes a one-hot matrix of every batch, and waits for the device to leave labels out.

    Args:
        top_k: How many classes are looked at.
    """

    correct: Tensor
    total: Tensor

    def __init__(self, top_k: int = 1) -> None:
        super().__init__(correct=(), total=())
        self.top_k = top_k

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits ``(B, num_classes)``, labels ``(B,)``."""
        self.correct.add_(in_top_k(logits, labels, self.top_k).sum())  # an assignment passes through two modules
        self.total.add_((labels >= 0).sum())

    def compute(self) -> Tensor:
        """Return the share; 0 without labels."""
        return self.correct.float() / self.total.clamp(min=1)


class MacroF1(_Counts):
    """The mean F1 of the classes that occur, as label or prediction; negative labels do not count.

    Memory and time are linear in the classes: torchmetrics' metric (1.9) makes a confusion matrix of every batch.

    Args:
        num_classes: The number of classes.
    """

    right: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(right=(num_classes,), predicted=(num_classes,), actual=(num_classes,))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits ``(B, num_classes)``, labels ``(B,)``."""
        self.add(logits.argmax(1), labels)

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        """Count predicted classes, ``(B,)``, and labels, ``(B,)``."""
        kept = (labels >= 0).long()
        labels = labels.long().clamp(min=0)
        self.predicted.index_add_(0, predictions, kept)  # torch.bincount would wait for the device
        self.actual.index_add_(0, labels, kept)
        self.right.index_add_(0, labels, kept * (predictions == labels))

    def compute(self) -> Tensor:
        """Return the mean over the classes; 0 without labels."""
        occurs = (self.predicted + self.actual > 0).sum()
        return self.scores().sum() / occurs.clamp(min=1)

    def scores(self) -> Tensor:
        """Return the F1 of each class, ``(num_classes,)``; 0 where it does not occur."""
        return 2 * self.right.float() / (self.predicted + self.actual).clamp(min=1)  # 2 tp + fp + fn


class CountedMetrics(nn.ModuleDict):
    """Accuracy, macro F1 and, with more than five classes, top-5 accuracy, of the images of all ranks.

    It is used as a ``MetricCollection`` of torchmetrics.

    Args:
        num_classes: The number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self["accuracy"] = TopKAccuracy()
        if num_classes >= MIN_TOP_5_CLASSES:
            self["accuracy_top5"] = TopKAccuracy(top_k=5)
        self["f1_macro"] = MacroF1(num_classes)

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Count a batch: logits ``(B, num_classes)``, labels ``(B,)``."""
        metrics: Any = self.values()
        for metric in metrics:
            metric.update(logits, labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the values by name. Collective: one reduction of all counts."""
        metrics: Any = self
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            metrics = deepcopy(self)  # the sums are not counted again
            buffers = list(metrics.buffers())
            counts = torch.cat([each.flatten() for each in buffers])
            torch.distributed.all_reduce(counts)
            for buffer, sums in zip(buffers, counts.split([each.numel() for each in buffers]), strict=True):
                buffer.copy_(sums.view_as(buffer))
        return {name: metric.compute() for name, metric in metrics.items()}

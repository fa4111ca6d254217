"""Compute the measures of an evaluation from probabilities, by torchmetrics and by counts of classes."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, nll_loss

from timm_accel.predict.counts import CountedMetrics, MacroF1
from timm_accel.predict.evaluation import ClassMeasures, Confusion

MAX_MATRIX_CLASSES = 1000
"""The largest number of classes with a confusion matrix, whose size is the square of it."""


def multiclass_metrics(probabilities: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> dict[str, float]:
    """Return the metrics of `Evaluation` for single-label images.

    Args:
        probabilities: ``(N, num_classes)``, float64.
        labels: ``(N,)``.
        classes: The classes that the data have; ``f1_macro`` is the mean over them. None for all.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    count = probabilities.shape[1]
    counted: Any = CountedMetrics(count)
    counted.update(probabilities, labels)
    metrics = {name: metric.compute() for name, metric in counted.items()}  # in a launch, one process may be here alone
    if classes is not None and len(classes) < count:
        scores = class_measures(probabilities, labels, [str(number) for number in range(count)])
        metrics["f1_macro"] = torch.tensor([scores[number].f1 for number in classes]).mean()
    metrics["calibration_error"] = multiclass_calibration_error(probabilities, labels, count, n_bins=15, norm="l1")
    smallest = torch.finfo(probabilities.dtype).tiny
    metrics["negative_log_likelihood"] = nll_loss(probabilities.clamp(min=smallest).log(), labels)
    return {name: value.item() for name, value in metrics.items()}


def multilabel_metrics(
    probabilities: Tensor, targets: Tensor, classes: Sequence[int] | None = None
) -> dict[str, float]:
    """Return the metrics of `Evaluation` for multi-label images.

    Args:
        probabilities: ``(N, num_classes)``, float64.
        targets: ``(N, num_classes)`` of 0 and 1.
        classes: The classes that the data have; the metrics are of these alone. None for all.
    """
    from torchmetrics.functional.classification import (
        multilabel_average_precision,
        multilabel_exact_match,
        multilabel_f1_score,
    )

    if classes is not None and len(classes) < probabilities.shape[1]:
        probabilities, targets = probabilities[:, [*classes]], targets[:, [*classes]]
    count, integers = probabilities.shape[1], targets.round().long()
    metrics = {
        "map": multilabel_average_precision(probabilities, integers, count, average="macro"),
        "f1_macro": multilabel_f1_score(probabilities, integers, count, average="macro"),
        "exact_match": multilabel_exact_match(probabilities, integers, count),
        "negative_log_likelihood": binary_cross_entropy(probabilities, integers.to(probabilities.dtype)),
    }
    return {name: value.item() for name, value in metrics.items()}


def class_measures(probabilities: Tensor, targets: Tensor, names: list[str]) -> list[ClassMeasures]:
    """Return the measures of each class.

    Args:
        probabilities: ``(N, num_classes)``.
        targets: ``(N,)``, or ``(N, num_classes)`` of 0 and 1.
        names: The classes.
    """
    scores: Iterable[list[int]]
    if targets.ndim == 1:
        counts = MacroF1(len(names))
        counts.update(probabilities, targets)
        scores = torch.stack([counts.right, counts.predicted, counts.actual], dim=1).tolist()
    else:
        from torchmetrics.functional.classification import multilabel_stat_scores

        columns = multilabel_stat_scores(probabilities, targets.round().long(), len(names), average=None)
        scores = ([tp, tp + fp, support] for tp, fp, _, _, support in columns.tolist())
    return [
        ClassMeasures(
            name,
            precision=_share(right, predicted),
            recall=_share(right, actual),
            f1=_share(2 * right, predicted + actual),
            support=actual,
        )
        for name, (right, predicted, actual) in zip(names, scores, strict=True)
    ]


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> list[list[int]] | None:
    """Return counts, with a row for each true class and a column for each prediction.

    Args:
        probabilities: ``(N, num_classes)``.
        labels: ``(N,)``.

    Returns:
        The counts; None for more than `MAX_MATRIX_CLASSES` classes.
    """
    count = probabilities.shape[1]
    if count > MAX_MATRIX_CLASSES:
        return None
    return torch.bincount(_pairs(probabilities, labels), minlength=count**2).view(count, count).tolist()


def most_confused(probabilities: Tensor, labels: Tensor, names: list[str], max_items: int = 10) -> list[Confusion]:
    """Return the pairs of classes that are confused most often, the most frequent first.

    Args:
        probabilities: ``(N, num_classes)``.
        labels: ``(N,)``.
        names: The names of the classes.
        max_items: The maximum number of pairs.
    """
    pairs, counts = _pairs(probabilities, labels).unique(return_counts=True)
    rows, columns = pairs // len(names), pairs % len(names)
    wrong = rows != columns
    listed = zip(rows[wrong].tolist(), columns[wrong].tolist(), counts[wrong].tolist(), strict=True)
    ordered = sorted(listed, key=lambda pair: -pair[2])[:max_items]
    return [Confusion(names[row], names[column], count) for row, column, count in ordered]


def _pairs(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return one number for label and prediction of each image, ``(N,)``."""
    return labels * probabilities.shape[1] + probabilities.argmax(dim=1)

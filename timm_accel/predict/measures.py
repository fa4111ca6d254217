"""Compute the measures of an evaluation from probabilities, by torchmetrics."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, nll_loss
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_stat_scores,
    multilabel_average_precision,
    multilabel_exact_match,
    multilabel_f1_score,
    multilabel_stat_scores,
)

from timm_accel.predict.evaluation import ClassMeasures, Confusion


def multiclass_metrics(probabilities: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> dict[str, float]:
    """Return the metrics of `Evaluation` for single-label images.

    Args:
        probabilities: ``(N, num_classes)``, float64.
        labels: ``(N,)``.
        classes: The classes that the data have; ``f1_macro`` is the mean over them. None for all.
    """
    count = probabilities.shape[1]
    metrics = {"accuracy": multiclass_accuracy(probabilities, labels, count, average="micro")}
    if count > 5:
        metrics["accuracy_top5"] = multiclass_accuracy(probabilities, labels, count, average="micro", top_k=5)
    if classes is None or len(classes) == count:
        metrics["f1_macro"] = multiclass_f1_score(probabilities, labels, count, average="macro")
    else:
        metrics["f1_macro"] = multiclass_f1_score(probabilities, labels, count, average=None)[[*classes]].mean()
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
    if targets.ndim == 1:
        scores = multiclass_stat_scores(probabilities, targets, len(names), average=None)
    else:
        scores = multilabel_stat_scores(probabilities, targets.round().long(), len(names), average=None)
    return [
        ClassMeasures(name, _share(tp, tp + fp), _share(tp, tp + fn), _share(2 * tp, 2 * tp + fp + fn), support)
        for name, (tp, fp, _, fn, support) in zip(names, scores.tolist(), strict=True)
    ]


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> list[list[int]]:
    """Return counts, with a row for each true class and a column for each prediction.

    Args:
        probabilities: ``(N, num_classes)``.
        labels: ``(N,)``.
    """
    return multiclass_confusion_matrix(probabilities, labels, probabilities.shape[1]).tolist()


def most_confused(matrix: list[list[int]], names: list[str], max_items: int = 10) -> list[Confusion]:
    """Return the pairs of classes that are confused most often, the most frequent first.

    Args:
        matrix: A matrix from `confusion_matrix`.
        names: The names of the classes.
        max_items: The maximum number of pairs.
    """
    pairs = [
        Confusion(names[row], names[column], count)
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:max_items]

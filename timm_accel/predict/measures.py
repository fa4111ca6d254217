"""Compute the measures of an evaluation, by torchmetrics and by counts of classes.

Those of single-label images need four numbers of each image, whatever the number of classes: its `Outcomes`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from timm_accel.predict.counts import MIN_TOP_5_CLASSES, MacroF1, in_top_k
from timm_accel.predict.evaluation import ClassMeasures, Confusion

MAX_MATRIX_CLASSES = 1000
"""The largest number of classes with a confusion matrix, whose size is the square of it."""


@dataclass(frozen=True)
class Outcomes:
    """What the probabilities of single-label images say about their labels; every field is ``(N,)``.

    Args:
        labels: The labels.
        predictions: The most probable classes.
        in_top5: Whether the label is among the five most probable classes.
        confidences: The probability of the prediction, float64.
        likelihoods: The probability of the label, float64.
    """

    labels: Tensor
    predictions: Tensor
    in_top5: Tensor
    confidences: Tensor
    likelihoods: Tensor

    @classmethod
    def of_rows(cls, rows: Tensor, labels: Tensor) -> "Outcomes":
        """Return the outcomes of images from `outcome_rows`, ``(N, 4)``, and labels, ``(N,)``."""
        predictions, in_top5, confidences, likelihoods = rows.unbind(dim=1)
        return cls(labels, predictions.long(), in_top5.bool(), confidences, likelihoods)

    @property
    def right(self) -> Tensor:
        """Whether each prediction is the label, ``(N,)``."""
        return self.predictions == self.labels


def outcome_rows(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return ``(N, 4)`` numbers for `Outcomes.of_rows`, float64, from ``(N, num_classes)`` and ``(N,)``."""
    confidences, predictions = probabilities.max(dim=1)
    likelihoods = probabilities.gather(1, labels[:, None])[:, 0]
    in_top5 = in_top_k(probabilities, labels, min(5, probabilities.shape[1]))
    return torch.stack([each.double() for each in (predictions, in_top5, confidences, likelihoods)], dim=1)


def multiclass_metrics(outcomes: Outcomes, num_classes: int, classes: Sequence[int] | None = None) -> dict[str, float]:
    """Return the metrics of `Evaluation` for single-label images; accuracy and F1 equal the trainer's to the last bit.

    Args:
        outcomes: The outcomes of the images.
        num_classes: The number of the model's classes.
        classes: The classes that the data have; ``f1_macro`` is the mean over them. None for all.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    count, right = len(outcomes.labels), outcomes.right
    metrics = {"accuracy": right.sum().float() / count}
    if num_classes >= MIN_TOP_5_CLASSES:
        metrics["accuracy_top5"] = outcomes.in_top5.sum().float() / count
    counts = _counts(outcomes, num_classes)
    in_some = classes is not None and len(classes) < num_classes
    metrics["f1_macro"] = counts.scores()[torch.tensor(classes)].mean() if in_some else counts.compute()
    # the error of single-label images is that of "the prediction is right" as one label
    metrics["calibration_error"] = binary_calibration_error(outcomes.confidences.float(), right.long(), n_bins=15)
    smallest = torch.finfo(outcomes.likelihoods.dtype).tiny
    metrics["negative_log_likelihood"] = -outcomes.likelihoods.clamp(min=smallest).log().mean()
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


def multiclass_measures(outcomes: Outcomes, names: list[str]) -> list[ClassMeasures]:
    """Return the measures of each class for single-label images.

    Args:
        outcomes: The outcomes of the images.
        names: The classes.
    """
    counts = _counts(outcomes, len(names))
    return _measures(names, torch.stack([counts.right, counts.predicted, counts.actual], dim=1).tolist())


def multilabel_measures(probabilities: Tensor, targets: Tensor, names: list[str]) -> list[ClassMeasures]:
    """Return the measures of each class for multi-label images.

    Args:
        probabilities: ``(N, num_classes)``.
        targets: ``(N, num_classes)`` of 0 and 1.
        names: The classes.
    """
    from torchmetrics.functional.classification import multilabel_stat_scores

    columns = multilabel_stat_scores(probabilities, targets.round().long(), len(names), average=None)
    return _measures(names, ([tp, tp + fp, support] for tp, fp, _, _, support in columns.tolist()))


def _counts(outcomes: Outcomes, num_classes: int) -> MacroF1:
    counts = MacroF1(num_classes)
    counts.add(outcomes.predictions, outcomes.labels)
    return counts


def _measures(names: list[str], scores: Iterable[list[int]]) -> list[ClassMeasures]:
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


def confusion_matrix(outcomes: Outcomes, num_classes: int) -> list[list[int]] | None:
    """Return counts, with a row for each true class and a column for each prediction.

    Args:
        outcomes: The outcomes of the images.
        num_classes: The number of classes.

    Returns:
        The counts; None for more than `MAX_MATRIX_CLASSES` classes.
    """
    if num_classes > MAX_MATRIX_CLASSES:
        return None
    pairs = _pairs(outcomes, num_classes)
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).tolist()


def most_confused(outcomes: Outcomes, names: list[str], max_items: int = 10) -> list[Confusion]:
    """Return the pairs of classes that are confused most often, the most frequent first.

    Args:
        outcomes: The outcomes of the images.
        names: The names of the classes.
        max_items: The maximum number of pairs.
    """
    pairs, counts = _pairs(outcomes, len(names)).unique(return_counts=True)
    rows, columns = pairs // len(names), pairs % len(names)
    wrong = rows != columns
    listed = zip(rows[wrong].tolist(), columns[wrong].tolist(), counts[wrong].tolist(), strict=True)
    ordered = sorted(listed, key=lambda pair: -pair[2])[:max_items]
    return [Confusion(names[row], names[column], count) for row, column, count in ordered]


def _pairs(outcomes: Outcomes, num_classes: int) -> Tensor:
    """Return one number for label and prediction of each image, ``(N,)``."""
    return outcomes.labels * num_classes + outcomes.predictions

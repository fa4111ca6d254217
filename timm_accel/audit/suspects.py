"""Images whose labels are likely wrong, that fit no class, or that lie between two classes, by predictions for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from timm_accel.messages import counted, missing_extra
from timm_accel.text_files import write_csv

if TYPE_CHECKING:
    from timm_accel.predict import Scores

_OUTLIER = 0.13
"""An outlier's score is below this share of the median, as in cleanlab's Datalab (2.9)."""
_AMBIGUOUS = 0.1
"""The probabilities of the first two classes of an ambiguous image differ by less."""


@dataclass(frozen=True)
class Suspect:
    """An image to look at.

    Args:
        path: The file.
        label: The name of its class; the names of a multi-label image are joined by ``;``.
        suggestion: The class that the predictions suggest; the same as `label` where they suggest no other.
        score: From 0 to 1; the lower, the more suspect. Scores of different kinds do not compare.
        kind: ``label`` for a label that is likely wrong, ``outlier`` for an image that fits no class, ``ambiguous`` for
            one between two classes.
    """

    path: str
    label: str
    suggestion: str
    score: float
    kind: Literal["label", "outlier", "ambiguous"]


def find_suspects(scores: "Scores") -> tuple[Suspect, ...]:
    """Return the suspect images, each once: likely wrong labels, then outliers, then ambiguous ones, the worst first.

    Args:
        scores: Scores by models that were not trained on the images, such as those of `cross_validate`.

    Raises:
        ModuleNotFoundError: The extra ``labels`` is not installed.
        ValueError: The images are of fewer than two classes, or a score is NaN, infinite or below 0.

    Source: Confident learning, arXiv 1911.00068, ``cleanlab.filter.find_label_issues``: it estimates how many labels
    are wrong, and the images whose label has the lowest probability are named. Of its filters, this one found the
    most wrong labels with the fewest right ones (benchmarks/RESULTS.md). Outliers by
    ``cleanlab.outlier.OutOfDistribution``; of two classes there are none, since such an image lies between both. For
    multi-label images only labels are judged.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.multilabel_classification.filter import find_label_issues as find_multi_label_issues
    except ModuleNotFoundError as error:
        raise missing_extra("labels", "finding wrong labels", error.name) from error
    _check(scores)
    probabilities, labels = scores.probabilities.numpy(), scores.targets.numpy()
    options = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    if scores.is_multi_label:
        lists = [np.flatnonzero(row).tolist() for row in labels]
        least = np.where(labels == 1, probabilities, 1 - probabilities).min(axis=1)
        wrong = find_multi_label_issues(lists, probabilities, **options).tolist()
        return tuple(_suspect(scores, index, least[index], "label") for index in wrong)
    known = np.unique(labels)  # cleanlab wants every class to have an image
    numbers, known_probabilities = np.searchsorted(known, labels), probabilities[:, known]
    known_probabilities = known_probabilities / np.maximum(known_probabilities.sum(axis=1, keepdims=True), 1e-12)
    wrong = find_label_issues(numbers, known_probabilities, filter_by="low_self_confidence", **options)
    wrong = wrong[known_probabilities[wrong].argmax(axis=1) != numbers[wrong]].tolist()
    own = known_probabilities[np.arange(len(numbers)), numbers]
    fit, margin = _fit(numbers, known_probabilities), _margin(known_probabilities)
    found = {index: _suspect(scores, index, own[index], "label") for index in wrong}
    kinds: tuple[tuple[Literal["outlier", "ambiguous"], np.ndarray, float], ...] = (
        ("outlier", fit, _OUTLIER * float(np.median(fit))),
        ("ambiguous", margin, _AMBIGUOUS),
    )
    for kind, values, limit in kinds:
        for index in np.argsort(values, kind="stable").tolist():
            if values[index] < limit and index not in found:
                found[index] = _suspect(scores, index, values[index], kind)
    return tuple(found.values())


def _check(scores: "Scores") -> None:
    if not scores.is_multi_label and (count := len(scores.targets.unique())) < 2:
        raise ValueError(
            f"Expected scores of images of at least two classes, but got {counted(len(scores), 'image')} of {count}. "
            "Score the images of a whole dataset."
        )
    if len(bad := (~(scores.probabilities.isfinite() & (scores.probabilities >= 0))).nonzero()):
        index, number = bad[0].tolist()
        raise ValueError(
            f"Expected scores to be probabilities, but got {float(scores.probabilities[index, number])} for "
            f"{scores.paths[index]!r}. Score the images again."
        )


def _fit(numbers: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return how well each image fits any class, from 0 to 1; 1 where two classes leave no third choice."""
    from cleanlab.outlier import OutOfDistribution

    if probabilities.shape[1] <= 2:
        return np.ones(len(numbers))
    return OutOfDistribution().fit_score(pred_probs=probabilities, labels=numbers, verbose=False)


def _margin(probabilities: np.ndarray) -> np.ndarray:
    if probabilities.shape[1] < 2:
        return np.ones(len(probabilities))
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return first - second


def _suspect(scores: "Scores", index: int, score: float, kind: Literal["label", "outlier", "ambiguous"]) -> Suspect:
    label, probabilities = ";".join(scores.labels_of(index)), scores.probabilities[index]
    if scores.is_multi_label:
        numbers = (probabilities >= 0.5).nonzero().flatten().tolist()
        suggestion = ";".join(scores.class_names[number] for number in numbers)
    else:
        suggestion = scores.class_names[int(probabilities.argmax())]
    return Suspect(scores.paths[index], label, suggestion, float(score), kind)


def write_suspects(suspects: Sequence[Suspect], path: str | Path) -> None:
    """Write suspect images to a CSV file with the columns path, label, suggestion, score and kind, atomically.

    Delete the rows of images that are right, and pass the rest as ``exclude`` of a `Source` or a `Recipe`. It leaves
    out those of the kind ``label`` only; empty the kind of others that it is to leave out too.

    Args:
        suspects: From `find_suspects`, or of an `Audit`.
        path: The file.

    Raises:
        OSError: Nothing can be written there.
    """
    rows = [(each.path, each.label, each.suggestion, f"{each.score:.6f}", each.kind) for each in suspects]
    write_csv(path, [("path", "label", "suggestion", "score", "kind"), *rows])


def write_corrected(scores: "Scores", suspects: Sequence[Suspect], path: str | Path) -> None:
    """Write a manifest of all scored images, with the suggested class of those whose label is likely wrong, atomically.

    Args:
        scores: The scores.
        suspects: From `find_suspects`; only those of the kind ``label`` count. Remove those whose label is right.
        path: The CSV file, a source for `create_datasets`.

    Raises:
        OSError: Nothing can be written there.
    """
    corrected = {each.path: each.suggestion for each in suspects if each.kind == "label"}
    rows = [(each, corrected.get(each, ";".join(scores.labels_of(number)))) for number, each in enumerate(scores.paths)]
    write_csv(path, [("path", "label"), *rows])

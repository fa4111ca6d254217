"""Divide images into the folds of a cross-validation by class, without dividing groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from timm_accel.data.splits.splitting import numbered_groups


def check_fold(folds: Any, fold: Any) -> None:
    """Raise a `ValueError` unless there are at least two folds, and `fold` is one of them.

    Args:
        folds: Their number.
        fold: One of them, from 1.
    """
    if not (type(folds) is int and folds >= 2):
        raise ValueError(f"Expected folds to be an integer of at least 2, but got {folds!r}. Usual are 5 or 10.")
    if not (type(fold) is int and 1 <= fold <= folds):
        raise ValueError(f"Expected fold to be from 1 to {folds}, but got {fold!r}. Choose one of the folds.")


def split_by_fold(
    labels: Sequence[int] | np.ndarray,
    folds: int,
    fold: int,
    seed: int = 0,
    groups: Sequence[Any] | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    unit: str = "group",
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the evaluation images of one fold, both in ascending order.

    Every image is in the evaluation images of exactly one fold. Each fold has about the same share of each class, and
    all images of a group are in one fold.

    Args:
        labels: The label of each image, ``(N,)``.
        folds: The number of folds.
        fold: The fold that is for evaluation, from 1.
        seed: The seed of the division.
        groups: The group of each image, ``(N,)``; None where images are independent.
        names: The names of the classes, for the messages.
        unit: What a group is, for the messages.

    Raises:
        ValueError: A class has fewer images or groups than there are folds, an image has no group, or the groups cannot
            be divided so that every fold has every class.

    Source: ``sklearn.model_selection.StratifiedKFold`` and ``StratifiedGroupKFold``.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import

    check_fold(folds, fold)
    labels = np.asarray(labels)
    parts = np.arange(len(labels)) if groups is None else numbered_groups(groups, len(labels))
    for label in np.unique(labels):
        if (count := len(np.unique(parts[labels == label]))) < folds:
            noun = "image" if groups is None else unit
            raise ValueError(
                f"Expected every class to have at least one {noun} for each of {folds} folds, but got class "
                f"{_named(names, label)} with {count}. Use fewer folds, add images, or remove the class."
            )
    kind, grouping = (StratifiedKFold, None) if groups is None else (StratifiedGroupKFold, parts)
    divisions = kind(folds, shuffle=True, random_state=seed).split(labels, labels, grouping)
    train, val = list(divisions)[fold - 1]
    for side, numbers in {"training": train, "evaluation": val}.items():
        if missing := np.setdiff1d(labels, labels[numbers]).tolist():
            raise ValueError(
                f"Expected {unit}s that can be divided into {folds} folds with every class, but got none of class "
                f"{_named(names, missing[0])} among the {side} images of fold {fold}. Use fewer folds, or smaller "
                f"{unit}s."
            )
    return np.sort(train), np.sort(val)


def _named(names: Sequence[str] | None, label: int) -> str:
    return str(label) if names is None else repr(names[label])

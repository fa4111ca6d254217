"""Split images into training and evaluation by class, fraction and seed, without dividing groups."""

import csv
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.dataset_factory import _EVAL_SYNONYM, _TRAIN_SYNONYM

from timm_accel.data.readers.regular_files import check_regular
from timm_accel.messages import one_line
from timm_accel.text_files import read_csv, write_csv

SPLITS = {"train": tuple(_TRAIN_SYNONYM), "val": tuple(_EVAL_SYNONYM), "test": ("test", "testing")}


def split_name(name: str) -> str:
    """Return ``train``, ``val`` or ``test`` for a synonym of a split; any other name is returned in lower case.

    Source: ``timm.data.dataset_factory``.
    """
    name = str(name).strip().lower()
    return next((one for one, synonyms in SPLITS.items() if name in synonyms), name)


def misspelled_split(name: str) -> str | None:
    """Return the name of a split that another name is probably meant to be; None for names such as ``fold_1``.

    Args:
        name: A name that is no split and no synonym. With a synonym as a word in it, such as ``test_2``, it is another
            split.
    """
    written = str(name).strip().lower()
    known = [word for words in SPLITS.values() for word in words]
    if any(word in known for word in re.split(r"[^a-z]+", written)):
        return None
    swapped = [word for word in known if sorted(word) == sorted(written)]
    return next(iter(swapped or get_close_matches(written, known, n=1, cutoff=0.8)), None)


def split_by_class(
    labels: Sequence[int] | np.ndarray,
    val_fraction: float = 0.2,
    seed: int = 0,
    groups: Sequence[Any] | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    unit: str = "group",
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the evaluation images, both in ascending order.

    Each class gives `val_fraction` of its images, rounded, but at least one and never all. With `groups` all images of
    a group are on one side: the groups are visited in random order, and one goes to evaluation when that brings the
    counts of the classes nearer to the wanted counts.

    Args:
        labels: The label of each image, ``(N,)``.
        val_fraction: The share of the images that is for evaluation.
        seed: The seed of the draw.
        groups: The group of each image (a patient, a module, equal files), ``(N,)``; None where images are independent.
        names: The names of the classes, for the messages.
        unit: What a group is, for the messages.

    Raises:
        ValueError: `val_fraction` is not between 0 and 1, a class has only one image or one group, or an image has no
            group.
    """
    labels = np.asarray(labels)
    if not (isinstance(val_fraction, int | float) and 0 < val_fraction < 1):
        raise ValueError(f"Expected val_fraction to be between 0 and 1, but got {val_fraction!r}. The default is 0.2.")
    draw = np.random.default_rng(seed)
    sizes = np.bincount(labels)
    wanted = np.clip(np.round(sizes * val_fraction), 1, np.maximum(sizes - 1, 0))
    if groups is None:
        _check_divisible(labels, np.arange(len(labels)), names, "image")
        chosen = [draw.permutation(np.flatnonzero(labels == label))[: int(n)] for label, n in enumerate(wanted)]
        val = np.sort(np.concatenate(chosen))
    else:
        val = np.flatnonzero(_choose_groups(labels, numbered_groups(groups, len(labels)), wanted, draw, names, unit))
    return np.setdiff1d(np.arange(len(labels)), val), val


def numbered_groups(groups: Sequence[Any] | np.ndarray, count: int) -> np.ndarray:
    """Return the number of the group of each image, ``(N,)``.

    Raises:
        ValueError: An image has no group.
    """
    if len(groups) != count or any(group is None for group in groups):
        without = sum(group is None for group in groups)
        raise ValueError(
            f"Expected a group for each of {count} images, but got {len(groups)}, {without} of them None. "
            "Give every image one."
        )
    return np.unique([str(group) for group in groups], return_inverse=True)[1]


def _choose_groups(
    labels: np.ndarray,
    groups: np.ndarray,
    wanted: np.ndarray,
    draw: np.random.Generator,
    names: Sequence[str] | None,
    unit: str,
) -> np.ndarray:
    """Return which images are for evaluation."""
    _check_divisible(labels, groups, names, unit)
    (group_of, label_of), counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    bounds = np.searchsorted(group_of, np.arange(groups.max() + 2)).tolist()
    classes = list(zip(label_of.tolist(), counts.tolist(), strict=True))  # of each group, one after the other
    goals, total, have = wanted.tolist(), np.bincount(labels, minlength=len(wanted)).tolist(), [0] * len(wanted)
    taken = np.zeros(len(bounds) - 1, dtype=bool)
    for group in draw.permutation(len(taken)).tolist():
        part = classes[bounds[group] : bounds[group + 1]]
        exhausts = any(have[label] + count == total[label] for label, count in part)  # some must stay for training
        lacks = any(have[label] == 0 for label, _ in part)  # and evaluation must have some
        nearer = sum(abs(goals[at] - have[at] - count) - abs(goals[at] - have[at]) for at, count in part) < 0
        if not exhausts and (lacks or nearer):
            taken[group] = True
            for label, count in part:
                have[label] += count
    return taken[groups]


def _check_divisible(labels: np.ndarray, parts: np.ndarray, names: Sequence[str] | None, kind: str) -> None:
    for label in np.unique(labels):
        if len(np.unique(parts[labels == label])) < 2:
            name = repr(names[label]) if names is not None else label
            raise ValueError(
                f"Expected every class to have at least two {kind}s, since one is for training and one for evaluation, "
                f"but got class {name} with one. Add images, remove the class, or split the images yourself."
            )


def write_split(path: str | Path, splits: Mapping[str, Sequence[tuple[str, Any]]]) -> None:
    """Write which image is in which split, as a manifest ``path,label,split``, atomically.

    Args:
        path: The CSV file.
        splits: The path of each image of each split, and the name of its class or the list of its classes.
    """
    lines = [(name, label, split) for split, rows in splits.items() for name, label in rows]
    write_csv(path, [("path", "label", "split"), *lines], shared=True)  # all ranks of a run write the same file


def read_split(path: str | Path, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the evaluation images, as `write_split` wrote them.

    Args:
        path: The CSV file.
        paths: The path of each image.

    Raises:
        ValueError: The file cannot be read, or does not list all of them.
    """
    check_regular(path)
    try:
        sides = {row["path"]: row["split"] for row in read_csv(path)}
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise ValueError(
            f"Expected split_file to be a CSV in UTF-8 with the columns path and split, but got {str(path)!r} "
            f"({one_line(error)}). Remove it, and the data are split again."
        ) from error
    if unknown := [name for name in paths if name not in sides]:
        raise ValueError(
            f"Expected split_file to list every image, but got {str(path)!r}, which lacks {len(unknown)} of "
            f"{len(paths)}, such as {unknown[0]!r}. Split again into another file."
        )
    split = np.array([sides[name] for name in paths])
    return np.flatnonzero(split == "train"), np.flatnonzero(split == "val")

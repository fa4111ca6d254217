"""Splits by class and by group."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusal import refused

from timm_accel.data.splits.splitting import split_by_class, write_split

LABELS = np.repeat([0, 1, 2], [100, 40, 6])


def test_each_class_gives_its_share() -> None:
    train, val = split_by_class(LABELS, 0.25)
    assert np.bincount(LABELS[val]).tolist() == [25, 10, 2]
    assert sorted([*train, *val]) == list(range(146))
    assert list(val) == sorted(val)


def test_the_seed_decides() -> None:
    first, again, other = (split_by_class(LABELS, 0.25, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_class_is_on_both_sides_whatever_the_fraction(fraction: float) -> None:
    for side in split_by_class(LABELS, fraction):
        assert np.bincount(LABELS[side], minlength=3).min() >= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_on_both_sides_and_classes_keep_their_share(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups = draw.integers(0, 60, 600)
    labels = draw.integers(0, 4, 600)
    train, val = split_by_class(labels, 0.25, seed, groups=[f"patient {group}" for group in groups])
    assert not set(groups[train]) & set(groups[val])
    assert sorted([*train, *val]) == list(range(600))
    shares = np.bincount(labels[val], minlength=4) / np.bincount(labels)
    assert np.all((shares > 0.12) & (shares < 0.4))


def test_every_class_has_groups_on_both_sides() -> None:
    labels = np.array([0] * 50 + [1] * 2)
    groups = [f"a{number // 10}" for number in range(50)] + ["b", "c"]
    for seed in range(10):
        for side in split_by_class(labels, 0.2, seed, groups=groups):
            assert set(labels[side]) == {0, 1}


@pytest.mark.parametrize("fraction", [0, 1, -0.5, "0.2"])
def test_a_fraction_that_is_none_is_refused(fraction: Any) -> None:
    with refused(ValueError, "val_fraction", "between 0 and 1", f"got {fraction!r}", "0.2"):
        split_by_class(LABELS, fraction)


def test_a_class_that_cannot_be_divided_is_named() -> None:
    with refused(ValueError, "at least two images", "class 'owl' with one", "Add images"):
        split_by_class([0, 0, 1], names=["cat", "owl"])
    with refused(ValueError, "at least two groups", "class 1 with one"):
        split_by_class([0, 0, 1, 1], groups=["a", "b", "c", "c"])


def test_images_without_a_group_are_refused() -> None:
    with refused(ValueError, "a group for each of 4 images", "got 4, 1 of them None"):
        split_by_class([0, 0, 1, 1], groups=["a", "b", None, "c"])
    with refused(ValueError, "a group for each of 4 images", "got 3"):
        split_by_class([0, 0, 1, 1], groups=["a", "b", "c"])


def test_a_split_is_written_as_a_manifest(tmp_path: Path) -> None:
    file = tmp_path / "run" / "split.csv"
    write_split(file, {"train": [("a, b.png", "cat")], "val": [("c.png", "dog")]})
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert rows == [
        {"path": "a, b.png", "label": "cat", "split": "train"},
        {"path": "c.png", "label": "dog", "split": "val"},
    ]
    assert list(file.parent.iterdir()) == [file]

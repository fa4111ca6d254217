"""Folds: each image is evaluated once, classes are shared out evenly, and groups and equal files stay together."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from refusal import refused

from timm_accel.data import Source
from timm_accel.data.splits.folds import split_by_fold


@pytest.mark.parametrize("groups", [None, [number // 2 for number in range(60)]])
def test_each_image_is_evaluated_once_and_classes_are_shared_out_evenly(groups: list[int] | None) -> None:
    labels = np.array([0] * 30 + [1] * 20 + [2] * 10)
    parts = [split_by_fold(labels, 5, fold, seed=3, groups=groups) for fold in range(1, 6)]
    assert sorted(np.concatenate([val for _, val in parts])) == list(range(60))
    for train, val in parts:
        assert sorted([*train, *val]) == list(range(60))
        assert np.bincount(labels[val]).tolist() == [6, 4, 2]
        if groups is not None:
            assert not {groups[each] for each in train} & {groups[each] for each in val}


def test_the_seed_decides() -> None:
    labels = [0, 1] * 20
    first, again, other = (split_by_fold(labels, 4, 1, seed=seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_folds_divide_the_training_images_of_any_source(tmp_path: Path) -> None:
    write_images(tmp_path / "split" / "train", {"cat": 6, "dog": 6})
    write_images(tmp_path / "split" / "val", {"cat": 4, "dog": 4})
    write_images(tmp_path / "plain", {"cat": 6, "dog": 6})
    manifest = tmp_path / "list.csv"
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted((tmp_path / "plain").rglob("*.png"))]
    manifest.write_text("\n".join(["path,label", *lines]))
    mapping = {"train": tmp_path / "split" / "train", "val": tmp_path / "split" / "val"}
    samples = [(Image.new("RGB", (8, 8)), number % 2) for number in range(12)]
    for data in (tmp_path / "split", tmp_path / "plain", manifest, mapping, samples):
        seen = []
        for fold in (1, 2, 3):
            source = Source(data, folds=3, fold=fold)
            train, val = source.open("train"), source.open("val")
            names = [[reader.filename(number) for number in range(len(reader))] for reader in (train, val)]
            assert (len(train), len(val)) == (8, 4)
            assert not set(names[0]) & set(names[1])
            seen += names[1]
        assert len(set(seen)) == 12
    with refused(ValueError, "Expected a split 'test' in the data"):
        Source(tmp_path / "plain", folds=3, fold=1).open("test")


def test_equal_files_and_groups_are_in_one_fold(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 6, "dog": 6})
    shutil.copy(tmp_path / "cat" / "000.png", tmp_path / "cat" / "copy.png")
    for fold in (1, 2, 3):
        reader = Source(tmp_path, folds=3, fold=fold).open("val")
        names = {reader.filename(number) for number in range(len(reader))}
        assert len(names & {"cat/000.png", "cat/copy.png"}) in (0, 2)
    sides = Source(tmp_path, folds=2, fold=1, group=r"/00([0-9])|copy").open  # copy has no group
    with refused(ValueError, "Expected a group for each of 13 images"):
        sides("val")


@pytest.mark.parametrize(
    ("labels", "groups", "words"),
    [
        ([0, 0, 0, 1, 1], None, "at least one image for each of 3 folds, but got class 'dog' with 2"),
        ([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 3, 4], "at least one group for each of 3 folds, but got class 'dog' with 2"),
        ([1, 0, 0, 1, 0, 1], [1, 4, 2, 0, 3, 3], "but got none of class 'cat' among the evaluation images of fold 3"),
    ],
)
def test_classes_and_groups_that_cannot_be_divided_are_refused(labels, groups, words: str) -> None:
    with refused(ValueError, words):
        split_by_fold(labels, 3, 3, groups=groups, names=["cat", "dog"])


def test_streams_have_no_folds(tmp_path: Path) -> None:
    with refused(ValueError, "Expected no folds beside the stream 'wds/shards', but got 3"):
        Source("wds/shards", root=tmp_path, folds=3, fold=1).open("train")

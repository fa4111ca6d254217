"""Splits are found at any depth, in folders and tars, and a class is never mistaken for a split."""

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images
from refusal import refused

from timm_accel.audit import audit
from timm_accel.data import Source, create_datasets
from timm_accel.data.splits.nested_splits import find_splits

COUNTS = {"cat": 4, "dog": 4}
HALF = (0.5,) * 3


def sizes(data: Any) -> list[dict[str, int]]:
    return [part.class_sizes for part in create_datasets(8, HALF, HALF, data=data)]


def as_tar(folder: Path) -> Path:
    with tarfile.open(f"{folder}.tar", "w") as tar:
        tar.add(folder, ".")
    return Path(f"{folder}.tar")


def imagenette(root: Path) -> Path:
    """The layout of imagenette2-320.tar, with what lies beside it."""
    write_images(root / "imagenette2-320" / "train", COUNTS)
    write_images(root / "imagenette2-320" / "val", {"cat": 2, "dog": 2})
    (root / "imagenette2-320" / "noisy_imagenette.csv").write_text("path,label\n")
    (root / "README.md").write_text("The data.")
    return root


def images_and_labels(root: Path) -> Path:
    write_images(root / "images" / "train", COUNTS)
    write_images(root / "images" / "validation", {"cat": 2, "dog": 2})
    for split in ("train", "validation"):
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "0.txt").write_text("0 0.5 0.5 1 1")
    return root


def very_deep(root: Path) -> Path:
    write_images(root / "a" / "b" / "c" / "data" / "Train", COUNTS)
    write_images(root / "a" / "b" / "c" / "data" / "eval", {"cat": 2, "dog": 2})
    write_images(root / "a", {".": 1})  # a figure on the way down
    write_images(root / "a" / "b" / "c" / "data" / "test", {"cat": 1, "dog": 1})
    return root


@pytest.mark.parametrize("make", [imagenette, images_and_labels, very_deep])
def test_splits_further_down_are_kept_apart(make: Any, tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    expected = [COUNTS, {"cat": 2, "dog": 2}]
    assert sizes(root) == expected
    assert sizes(as_tar(root)) == expected
    val = Source(root).open("val")
    assert {Path(val.path(index)).parts[-3] for index in range(len(val))} <= {"val", "validation", "eval"}


def test_tars_of_splits_further_down_are_kept_apart(tmp_path: Path) -> None:
    imagenette(tmp_path / "a")
    (tmp_path / "set" / "tars").mkdir(parents=True)
    for split in ("train", "val"):
        as_tar(tmp_path / "a" / "imagenette2-320" / split).rename(tmp_path / "set" / "tars" / f"{split}.tar")
    assert sizes(tmp_path / "set") == [COUNTS, {"cat": 2, "dog": 2}]
    for split in ("train", "val"):  # one tar for each class
        (tmp_path / "classes" / "deep" / split).mkdir(parents=True)
        for name in COUNTS:
            tar = as_tar(tmp_path / "a" / "imagenette2-320" / split / name)
            tar.rename(tmp_path / "classes" / "deep" / split / f"{name}.tar")
    assert sizes(tmp_path / "classes") == [COUNTS, {"cat": 2, "dog": 2}]


def test_a_tar_of_tars_has_the_splits_of_its_folders(tmp_path: Path) -> None:
    imagenette(tmp_path / "a")
    for split in ("train", "val"):
        for name in COUNTS:
            tar = as_tar(tmp_path / "a" / "imagenette2-320" / split / name)
            (tmp_path / "b" / "set" / split).mkdir(parents=True, exist_ok=True)
            tar.rename(tmp_path / "b" / "set" / split / f"{name}.tar")
    assert sizes(as_tar(tmp_path / "b")) == [COUNTS, {"cat": 2, "dog": 2}]


def test_a_tar_beside_the_folder_that_was_unpacked_from_it_is_passed_over(tmp_path: Path) -> None:
    root = imagenette(tmp_path / "set")
    for path in (root / "imagenette2-320", root / "imagenette2-320" / "train", root / "imagenette2-320" / "val"):
        as_tar(path)
    as_tar(root / "imagenette2-320" / "val").rename(root / "backup.tar")
    write_images(root / "imagenette2-320" / "train", {"cat": 6})  # since it was unpacked
    write_images(root / "imagenette2-320" / "val", {"cat": 3})
    assert sizes(root) == sizes(root / "imagenette2-320") == [{"cat": 6, "dog": 4}, {"cat": 3, "dog": 2}]
    write_images(tmp_path / "classes", COUNTS)
    as_tar(tmp_path / "classes" / "cat").rename(tmp_path / "classes" / "all.tar")
    assert sizes(tmp_path / "classes") == [{"cat": 3, "dog": 3}, {"cat": 1, "dog": 1}]


def test_the_audit_finds_the_same_splits(tmp_path: Path) -> None:
    root = images_and_labels(tmp_path / "set")
    write_images(root / "images" / "extra", {"cat": 1})
    found = audit(root, num_workers=0, progress=False)
    assert {name: split.num_files for name, split in found.splits.items()} == {"train": 8, "validation": 4, "extra": 1}
    found = audit(as_tar(imagenette(tmp_path / "tar")), num_workers=0, progress=False)
    assert {name: split.num_files for name, split in found.splits.items()} == {"train": 8, "val": 4}
    assert found.splits["val"].files.used == {".png": 4}


# Classes that are called like splits


@pytest.mark.parametrize("deep", ["", "one/two"])
def test_a_class_may_be_called_train_or_test(deep: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "set" / deep, {"bus": 4, "train": 4, "car": 4, "test": 4}).parents[-1]
    expected = {"bus": 3, "car": 3, "test": 3, "train": 3}
    assert sizes(tmp_path / "set") == [expected, dict.fromkeys(expected, 1)]
    assert sizes(as_tar(tmp_path / "set"))[0] == expected
    assert root.exists()


def test_tars_of_classes_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path / "a", {"bus": 4, "train": 4})
    (tmp_path / "set").mkdir()
    for name in ("bus", "train"):
        as_tar(tmp_path / "a" / name).rename(tmp_path / "set" / f"{name}.tar")
    assert sizes(tmp_path / "set") == [{"bus": 3, "train": 3}, {"bus": 1, "train": 1}]


def test_a_class_called_train_within_splits_is_a_class(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "set" / split, {"bus": 4, "train": 4})
    assert sizes(tmp_path / "set") == [{"bus": 4, "train": 4}] * 2
    assert sizes(as_tar(tmp_path / "set")) == [{"bus": 4, "train": 4}] * 2


LAYOUTS = {  # folders with images: the folder of the splits
    ("train/cat", "val/cat"): "",
    ("train", "val"): "",  # flat: refused later, since there are no classes
    ("train", "val", "others"): "",
    ("train/cat", "val/cat", "others"): "",
    ("train/cat", "test/cat"): "",
    ("train", "test"): "",
    ("train/cat",): "",
    ("train",): None,
    ("x/train",): None,
    ("x/y/train/cat", "x/y/val/cat"): "x/y",
    ("x/y/train/cat", "x/y/val/cat", "x"): "x/y",
    ("x/train/cat", "x/val/cat", "x/extra/cat"): "x",
    ("x/train/cat", "x/unused/cat"): "x",
    ("x/train/cat", "x/bus/red"): None,
    ("bus", "train", "car"): None,
    ("bus", "train", "test"): None,
    ("bus/day", "train/steam", "car/red"): None,
    ("vehicle/train", "vehicle/bus", "animal/cat"): None,
    ("cat", "dog"): None,
    ("trains/cat", "values/cat"): None,
    (): None,
}


@pytest.mark.parametrize("folders", LAYOUTS, ids=lambda folders: " ".join(folders) or "none")
def test_the_folder_of_the_splits_is_found(folders: tuple[str, ...]) -> None:
    assert find_splits(folders, "set") == LAYOUTS[folders]


# What is refused


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_splits_at_several_places_are_refused(kind: str, tmp_path: Path) -> None:
    for name in ("cifar", "imagenette"):
        imagenette(tmp_path / "set" / name)
    data = as_tar(tmp_path / "set") if kind == "tar" else tmp_path / "set"
    places = "splits in 'cifar/imagenette2-320', 'imagenette/imagenette2-320'. Name one of these folders."
    with refused(ValueError, "Expected the splits of one dataset", str(data), places):
        sizes(data)
    with refused(ValueError, "got 'x' with splits in 'cat', 'dog', 'owl', …"):
        find_splits([f"{name}/{split}" for name in ("cat", "dog", "owl", "pig") for split in ("train", "val")], "x")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_beside_the_folder_of_the_splits_are_refused(kind: str, tmp_path: Path) -> None:
    root = imagenette(tmp_path / "set")
    write_images(root, {"other": 1})
    data = as_tar(root) if kind == "tar" else root
    with refused(ValueError, str(data), "splits in 'imagenette2-320' and further images in 'other'. Name", "move"):
        sizes(data)
    (root / "other").rename(root / "@eaDir")
    assert sizes(as_tar(root) if kind == "tar" else root) == [COUNTS, {"cat": 2, "dog": 2}]


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = imagenette(tmp_path / "set")
    write_images(root / "imagenette2-320" / "valid", COUNTS)
    with refused(ValueError, "one folder or tar for the split 'val'", "'val' and 'valid'", "imagenette2-320", "Move"):
        sizes(root)


def test_a_split_that_is_missing_further_down_is_named_with_its_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "data" / "train", COUNTS)
    with refused(ValueError, "a split 'val' in", os.path.join("set", "data"), "['train'] alone"):
        sizes(tmp_path / "set")


def test_a_split_whose_files_are_all_left_out_says_that(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "data" / "train", COUNTS)
    (tmp_path / "set" / "data" / "val" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "data" / "val" / "cat" / "0.heic").touch()
    with refused(FileNotFoundError, "data/val", "all of whose files are left out: 1 file (1 .heic)"):
        sizes(tmp_path / "set")

"""A drawn split divides files: what is one file, or has the same bytes, stays on one side."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from refusal import refused
from torch.utils.data import ConcatDataset, Dataset, Subset

from timm_accel import create_datasets
from timm_accel.data import FolderReader, ManifestReader, Source, split_by_class
from timm_accel.data.equal_files import equal_images, merged_groups
from timm_accel.data.readers.dataset_reader import DatasetReader

HALF = (0.5,) * 3


def manifest(folder: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = ("path", "label")) -> Path:
    with open(folder / "set.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / "set.csv"


def sides(source: Source) -> list[set[str]]:
    """The files of each side; a link is the file that it leads to."""
    readers = [source.open(split) for split in ("train", "val")]
    return [{os.path.realpath(reader.filename(i, absolute=True)) for i in range(len(reader))} for reader in readers]


def copies(images: Path) -> list[tuple[str, str]]:
    """A second row for each of 12 images of a class, in five forms."""
    rows = []
    for label in ("cat", "dog"):
        for number in range(12):
            name = f"{label}/{number:03d}.png"
            other = f"{label}/other{number:03d}.png"
            if number % 5 == 0:
                other = name
            elif number % 5 == 1:
                other = f"./{label}/../{name}"
            elif number % 5 == 2:
                (images / other).symlink_to(images / name)
            elif number % 5 == 3:
                os.link(images / name, images / other)
            else:
                (images / other).write_bytes((images / name).read_bytes())
            rows += [(name, label), (other, label)]
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_the_same_image_in_two_rows_is_on_one_side(seed: int, tmp_path: Path) -> None:
    images = write_images(tmp_path, {"cat": 12, "dog": 12})
    path = manifest(images, *copies(images))
    source = Source(path, val_fraction=0.25, split_seed=seed)
    train, val = (source.open(split) for split in ("train", "val"))
    contents = [
        {Path(reader.filename(i, absolute=True)).read_bytes() for i in range(len(reader))} for reader in (train, val)
    ]
    assert not contents[0] & contents[1]
    assert (len(contents[0]), len(contents[1])) == (18, 6)  # of 24 images, three of each class
    assert (len(train), len(val)) == (36, 12)


@pytest.mark.parametrize("group", [None, r"(\w)\w*/"])
def test_a_set_without_equal_files_is_split_as_ever(group: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path, {"cat": 20, "dog": 11})
    reader = FolderReader(images)
    assert equal_images(reader) is None
    train, val = split_by_class(reader.labels, 0.3, 5)
    source = Source(images, val_fraction=0.3, split_seed=5)
    assert [source.open(split).numbers.tolist() for split in ("train", "val")] == [train.tolist(), val.tolist()]


def test_copies_in_folders_of_two_classes_are_on_one_side(tmp_path: Path) -> None:
    images = write_images(tmp_path, {"cat": 10, "dog": 10})
    for number in range(3):
        (images / "dog" / f"copy{number}.png").write_bytes((images / "cat" / f"00{number}.png").read_bytes())
    for seed in range(5):
        source = Source(images, val_fraction=0.4, split_seed=seed)
        contents = [{Path(name).read_bytes() for name in side} for side in sides(source)]
        assert not contents[0] & contents[1]


def test_groups_and_equal_files_are_joined(tmp_path: Path) -> None:
    images = write_images(tmp_path, {"cat": 12, "dog": 12})
    same = (images / "cat" / "000.png").read_bytes()
    (images / "cat" / "011.png").write_bytes(same)  # joins the groups of 0 and of 11
    rows = [(f"{name}/{i:03d}.png", name, f"g{i // 3} {name}") for name in ("cat", "dog") for i in range(12)]
    path = manifest(images, *rows, columns=("path", "label", "group"))
    for seed in range(6):
        found = sides(Source(path, val_fraction=0.4, split_seed=seed))
        names = [{Path(name).relative_to(images).as_posix() for name in side} for side in found]
        joined = {f"cat/{i:03d}.png" for i in (0, 1, 2, 9, 10, 11)}
        assert joined <= names[0] or joined <= names[1]
    without = manifest(images, *[(*row[:2], "") for row in rows[:1]], *rows[1:], columns=("path", "label", "group"))
    with refused(ValueError, "a group for each of 24 images", "1 of them None"):
        Source(without).open("train")


def test_a_multi_label_set_keeps_equal_files_together(tmp_path: Path) -> None:
    images = write_images(tmp_path, {"cat": 8, "dog": 8})
    rows = [(f"{name}/{i:03d}.png", "cat;dog" if i == 0 else name) for name in ("cat", "dog") for i in range(8)]
    path = manifest(images, *rows, *rows)
    for seed in range(4):
        first, second = sides(Source(path, val_fraction=0.5, split_seed=seed))
        assert (len(first), len(second), first & second) == (8, 8, set())


def test_a_class_of_copies_alone_cannot_be_divided(tmp_path: Path) -> None:
    images = write_images(tmp_path, {"cat": 4, "dog": 2})
    (images / "dog" / "001.png").write_bytes((images / "dog" / "000.png").read_bytes())
    with refused(ValueError, "at least two different images", "class 'dog' with one"):
        create_datasets(8, HALF, HALF, data=images)


def test_files_of_equal_size_or_end_are_not_equal(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    bodies = [b"1" + b"x" * 9999, b"2" + b"x" * 9999, b"1" + b"x" * 9999, b"", b"", b"x" * 4096]
    for number, body in enumerate(bodies):
        (tmp_path / "a" / f"{number}.png").write_bytes(body)
    assert equal_images(FolderReader(tmp_path)).tolist() == [0, 1, 0, 3, 4, 5]


def test_one_path_is_one_file_even_if_it_is_empty(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    path = manifest(tmp_path, ("a.png", "cat"), ("./a.png", "cat"), ("b.png", "cat"))
    assert equal_images(ManifestReader(path)).tolist() == [0, 0, 1]


def test_a_file_of_another_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for number, size in enumerate((10, 20, 20, 30)):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"x" * size)
    reader, opened = FolderReader(tmp_path), []
    monkeypatch.setattr("builtins.open", lambda path, *mode, true=open: opened.append(path) or true(path, *mode))
    assert equal_images(reader).tolist() == [0, 1, 1, 3]
    assert {os.path.basename(path) for path in opened} == {"1.png", "2.png"}


class Numbers(Dataset):
    """Equal images, which count by their index."""

    def __init__(self, count: int) -> None:
        self.targets = [number % 2 for number in range(count)]

    def __getitem__(self, index: int) -> Any:
        return Image.new("RGB", (4, 4)), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def test_images_of_a_torch_dataset_count_by_their_index() -> None:
    first, second = Numbers(8), Numbers(8)
    assert equal_images(DatasetReader(first)) is None
    assert equal_images(DatasetReader(ConcatDataset([first, second]))) is None
    repeated = Subset(ConcatDataset([first, Subset(first, [5, 6]), second]), [0, 1, 0, 5, 8, 10, 2, 3])
    found = equal_images(DatasetReader(repeated))
    assert [[*np.flatnonzero(found == number)] for number in np.unique(found)].count([0, 2]) == 1
    assert (found[3] == found[4], len(np.unique(found))) == (True, 6)
    source = Source(Subset(first, [*range(8)] * 3), val_fraction=0.5)
    drawn = [{source.data.indices[number] for number in source.open(split).numbers} for split in ("train", "val")]
    assert (len(drawn[0]), len(drawn[1]), drawn[0] & drawn[1]) == (4, 4, set())


def test_groupings_are_merged_over_chains() -> None:
    assert merged_groups(["a", "b", "b", "c", "d"], np.array([0, 0, 1, 1, 2])).tolist() == [0, 0, 0, 0, 3]
    assert merged_groups(None, np.array([7, 7, 9])).tolist() == [0, 0, 1]
    assert merged_groups(None, None) is None
    chain = merged_groups([number // 2 for number in range(100)], [(number + 1) // 2 for number in range(100)])
    assert len(set(chain.tolist())) == 1


def test_the_written_split_is_read_again(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"cat": 6, "dog": 6})
    path = manifest(images, *[(f"{name}/{i:03d}.png", name) for name in ("cat", "dog") for i in range(6)] * 2)
    file = tmp_path / "split.csv"
    first = sides(Source(path, val_fraction=0.5, split_file=file))
    assert sides(Source(path, split_seed=9, split_file=file)) == first
    assert isinstance(ManifestReader(file, "train", root=images), ManifestReader)

"""What a run says about data that changed since its state."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_images
from torch.utils.data import Subset, TensorDataset

from timm_accel.data.datasets import ImageFolderDataset
from timm_accel.data.identity import listing as identity
from timm_accel.data.identity.changes import describe_changes
from timm_accel.data.identity.listing import list_images, read_listing
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.readers.manifest_reader import ManifestReader


def images_of(folder: Path) -> ImageFolderDataset:
    return ImageFolderDataset(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", {"cat": 3, "dog": 3})


def said(before: Any, now: Any, tmp_path: Path) -> str:
    """The sentence about two lists, of which the first was stored."""
    before.write(tmp_path / "lists")
    changes = describe_changes("training", before.about(), read_listing(tmp_path / "lists", before.about()), now)
    assert changes is None or changes.same_images == changes.sentence.endswith("in another order.")
    return "" if changes is None else changes.sentence


def test_equal_data_change_nothing_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    before = list_images(images_of(folder))
    assert said(before, list_images(images_of(folder)), tmp_path) == ""
    shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copy)  # with other times
    assert said(before, list_images(images_of(tmp_path / "elsewhere")), tmp_path) == ""
    for path in folder.rglob("*.png"):  # copied again into the same place
        os.utime(path, (1, 1))
    assert said(before, list_images(images_of(folder)), tmp_path) == ""


def test_each_kind_of_change_is_counted_with_three_names(folder: Path, tmp_path: Path) -> None:
    before = list_images(images_of(folder))
    (folder / "cat" / "000.png").rename(folder / "dog" / "moved.png")  # another name: one removed, one added
    (folder / "cat" / "001.png").rename(folder / "dog" / "x.png")
    (folder / "dog" / "x.png").rename(folder / "dog" / "001b.png")
    (folder / "dog" / "000.png").unlink()
    (folder / "dog" / "002.png").write_bytes(b"other")
    assert said(before, list_images(images_of(folder)), tmp_path) == (
        "The training data differ from the state's: 1 changed, 3 removed, 2 added, such as 'dog/002.png', "
        "'cat/000.png', 'dog/001b.png'."
    )


def test_a_file_in_another_class_is_moved(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "only.png").write_bytes(b"cat")
    before = list_images(images_of(folder))
    (folder / "cat" / "only.png").rename(folder / "dog" / "only.png")
    sentence = said(before, list_images(images_of(folder)), tmp_path)
    assert sentence == ("The training data differ from the state's: 1 moved to another class, such as 'dog/only.png'.")


def test_a_row_of_a_manifest_with_another_label_is_moved(folder: Path, tmp_path: Path) -> None:
    def images(label: str) -> LabeledImages:
        (folder / "all.csv").write_text(f"path,label\ncat/000.png,cat\ndog/000.png,dog\ncat/001.png,{label}\n")
        return LabeledImages(ManifestReader(folder / "all.csv"))

    before = list_images(images("cat"))
    assert "1 moved to another class, such as 'cat/001.png'." in said(before, list_images(images("dog")), tmp_path)


def test_a_replaced_file_of_the_same_size_shows_by_its_time_or_by_its_content(folder: Path, tmp_path: Path) -> None:
    lists = [list_images(images_of(folder), check) for check in ("stat", "contents")]
    path = folder / "cat" / "001.png"
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + b"!")
    os.utime(path, ns=(1, status.st_mtime_ns + 1))
    assert "1 changed, such as 'cat/001.png'." in said(lists[0], list_images(images_of(folder), "stat"), tmp_path)
    os.utime(path, ns=(1, status.st_mtime_ns))
    assert said(lists[0], list_images(images_of(folder), "stat"), tmp_path) == ""
    assert "1 changed, such as 'cat/001.png'." in said(lists[1], list_images(images_of(folder), "contents"), tmp_path)
    path.write_bytes(content)
    os.utime(path)  # another time of the same content
    assert said(lists[1], list_images(images_of(folder), "contents"), tmp_path) == ""


def test_a_large_dataset_is_compared_by_paths_unless_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_STAT", 5)  # there are 6
    assert set(list_images(images_of(folder)).sizes) == {identity.UNKNOWN}
    assert min(list_images(images_of(folder), "stat").sizes) > 0
    monkeypatch.setattr(identity, "MAX_STAT", 6)
    assert min(list_images(images_of(folder)).sizes) > 0


def test_another_order_of_the_same_images_is_said(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder)
    turned = Subset(images, [1, 0, 2, 3, 4, 5])
    assert said(list_images(images), list_images(turned), tmp_path).endswith("the same 6 images in another order.")


def test_a_part_of_a_part_has_its_images(folder: Path) -> None:
    part = Subset(Subset(images_of(folder), [5, 4, 3]), [0, 2])
    listing = list_images(part)
    assert listing.paths() == ["dog/002.png", "dog/000.png"]
    assert listing.labels.tolist() == [1, 1]


def test_tensors_are_compared_by_number_and_labels(tmp_path: Path) -> None:
    def data(*labels: int) -> TensorDataset:
        return TensorDataset(torch.zeros(len(labels), 3, 2, 2), torch.tensor(labels))

    before = list_images(data(0, 1, 1))
    assert said(before, list_images(data(0, 1, 1)), tmp_path) == ""
    assert said(before, list_images(data(0, 1, 0)), tmp_path).endswith("other labels of 3 images.")
    assert said(before, list_images(data(0, 1)), tmp_path).endswith("3 images before, 2 now.")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"no archive", None])
def test_a_lost_list_is_said(damage: bytes | None, folder: Path, tmp_path: Path) -> None:
    before = list_images(images_of(folder))
    before.write(tmp_path / "lists")
    (file,) = (tmp_path / "lists").iterdir()
    file.unlink() if damage is None else file.write_bytes(damage)
    assert read_listing(tmp_path / "lists", before.about()) is None
    (folder / "dog" / "000.png").unlink()
    changes = describe_changes("training", before.about(), None, list_images(images_of(folder)))
    assert changes is not None
    assert changes.sentence.endswith("6 images before, 5 now; the list of the earlier ones is lost.")


def test_a_list_of_other_images_under_its_name_is_not_taken(folder: Path, tmp_path: Path) -> None:
    first, second = list_images(images_of(folder)), list_images(Subset(images_of(folder), [0, 1]))
    for each in (first, second):
        each.write(tmp_path / "lists")
    paths = [tmp_path / "lists" / f"{each.digest()[:16]}.npz" for each in (first, second)]
    paths[1].replace(paths[0])
    assert read_listing(tmp_path / "lists", first.about()) is None


def test_names_that_are_not_utf_8_are_listed(folder: Path, tmp_path: Path) -> None:
    os.rename(os.fsencode(folder / "cat" / "000.png"), os.fsencode(folder / "cat") + b"/caf\xe9.png")
    before = list_images(images_of(folder))
    assert "cat/caf\udce9.png" in before.paths()
    assert np.array_equal(before.names, list_images(images_of(folder)).names)


def test_elsewhere_a_time_is_no_change_but_a_size_is(folder: Path, tmp_path: Path) -> None:
    before = list_images(images_of(folder))
    shutil.copytree(folder, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "cat" / "000.png", (1, 1))
    assert said(before, list_images(images_of(tmp_path / "elsewhere")), tmp_path) == ""
    path = tmp_path / "elsewhere" / "dog" / "001.png"
    status = path.stat()
    path.write_bytes(b"short")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "1 changed, such as 'dog/001.png'." in said(before, list_images(images_of(tmp_path / "elsewhere")), tmp_path)


def test_a_file_that_is_moved_within_its_class_is_removed_and_added(folder: Path, tmp_path: Path) -> None:
    def images(path: str) -> LabeledImages:
        (folder / "all.csv").write_text(f"path,label\n{path},cat\ndog/000.png,dog\n")
        return LabeledImages(ManifestReader(folder / "all.csv"))

    before = list_images(images("cat/001.png"))
    (folder / "cats").mkdir()
    (folder / "cat" / "001.png").rename(folder / "cats" / "001.png")
    assert "1 removed, 1 added" in said(before, list_images(images("cats/001.png")), tmp_path)

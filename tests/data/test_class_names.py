"""The names of a dataset's classes stand at their labels, whatever the dataset calls them by."""

import tarfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from refusal import refused
from timm.data import ImageDataset
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from torchvision.datasets import ImageFolder
from trained_runs import brightness

from timm_accel import create_datasets, evaluate_classifier
from timm_accel.data import FolderReader, LabeledImages, ManifestReader, Source, class_names
from timm_accel.data.classes import in_label_order
from timm_accel.data.readers.dataset_reader import DatasetReader
from timm_accel.losses.class_weights import resolve_weights

HALF = (0.5,) * 3
COMPOSED, DECOMPOSED = normalize("NFC", "Café"), normalize("NFD", "Café")


def read(data: Any, **options: Any) -> Any:
    return create_datasets(8, HALF, HALF, data=data, auto_augment=None, **options)


class Listed(Dataset):
    """Gray images with labels, and whatever names are given."""

    def __init__(self, labels: Any, **attributes: Any) -> None:
        self.given = list(labels)
        self.__dict__.update(attributes)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        label = self.given[index]
        transform = getattr(self, "target_transform", None)
        return Image.new("RGB", (8, 8), (index, 0, 0)), label if transform is None else transform(label)

    def __len__(self) -> int:
        return len(self.given)


class ByNumber(ImageFolder):
    """An `ImageFolder` whose folders are named by their label."""

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        classes, _ = super().find_classes(directory)
        return classes, {name: int(name) for name in classes}


def numbered_folder(root: Path) -> Path:
    return write_images(root, {str(number): 2 for number in range(11)})


# Where names come from


def test_folders_named_by_their_label_stand_at_it(tmp_path: Path) -> None:
    dataset = ByNumber(str(numbered_folder(tmp_path)))
    assert dataset.classes[2] == "10"  # sorted as text
    assert class_names(dataset) == [str(number) for number in range(11)]
    train_set, val_set = read(Source(dataset, val_fraction=0.5))
    assert train_set.class_names == val_set.class_names == [str(number) for number in range(11)]
    assert train_set.class_sizes == dict.fromkeys(train_set.class_names, 1)


def test_class_to_idx_alone_names_the_classes() -> None:
    dataset = Listed([0, 1, 1, 0], class_to_idx={"dog": 1, "cat": 0})
    assert class_names(dataset) == list(DatasetReader(dataset).class_to_idx) == ["cat", "dog"]


def test_classes_and_class_to_idx_that_disagree_are_both_named() -> None:
    dataset = Listed([0, 1], classes=["cat", "dog"], class_to_idx={"cat": 0, "owl": 1})
    for use in (class_names, DatasetReader):
        with refused(ValueError, "same names", "classes=['cat', 'dog']", "class_to_idx={'cat': 0, 'owl': 1}"):
            use(dataset)


@pytest.mark.parametrize("given", [{"cat": 0, "dog": 2}, {"cat": 1, "dog": 2}, {"cat": -1, "dog": 0}, {"cat": "0"}])
def test_class_numbers_with_a_gap_are_refused(given: Any) -> None:
    with refused(ValueError, "number the classes 0, 1, 2, … without a gap", f"{next(iter(given))!r}: "):
        in_label_order(given)


def test_names_that_are_not_text_become_text() -> None:
    assert class_names(Listed([0, 1], classes=[7, 9])) == ["7", "9"]
    assert class_names(Listed([0, 1], class_to_idx={3: 1, None: 0})) == ["None", "3"]
    assert class_names(Listed([0, 1], classes=np.array(["a", "b"]))) == ["a", "b"]
    assert class_names(Listed([0, 1], class_names=[1, 2])) == ["1", "2"]
    with refused(ValueError, "each class to have another name", "'1' for two classes"):
        class_names(Listed([0, 1], class_to_idx={1: 0, "1": 1}))
    assert class_names(Listed([0, 1], classes=2)) is None  # a number of classes


def test_synonyms_of_a_class_are_one_name_and_equal_ones_are_told_apart() -> None:
    """torchvision's ImageNet has a tuple of names for each class, and two classes 'crane'."""
    classes = [("crane",), ("tench", "Tinca tinca"), ("crane",)]
    dataset = Listed([0, 1, 2], classes=classes, class_to_idx={"tench": 1, "Tinca tinca": 1, "crane": 2})
    assert class_names(dataset) == ["crane (0)", "tench, Tinca tinca", "crane (2)"]
    assert in_label_order({"cat": 0, "kitty": 0, "dog": 1}) == ["cat, kitty", "dog"]


def test_labels_that_are_text_name_their_classes() -> None:
    reader = DatasetReader(Listed(["b10", "b9", "b10"]))
    assert (reader.class_to_idx, reader.labels.tolist()) == ({"b9": 0, "b10": 1}, [1, 0, 1])
    assert reader[0][1] == 1


# The transform of targets


def test_names_and_sizes_follow_the_target_transform(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 4, "dog": 6, "owl": 8})
    dataset = ImageFolder(str(tmp_path), target_transform=lambda label: 2 - label)
    assert class_names(dataset) == ["owl", "dog", "cat"]
    train_set, val_set = read(Source(dataset, val_fraction=0.5))
    assert train_set.class_sizes == val_set.class_sizes == {"owl": 4, "dog": 3, "cat": 2}
    assert resolve_weights("weight", "auto", train_set, "inv_freq").argmax() == 2
    for part in (train_set, val_set):
        assert [part[index][1] for index in range(9)] == part.labels.tolist()


def test_a_transform_may_join_classes_or_number_them_from_0(tmp_path: Path) -> None:
    joined = Listed([0, 1, 2, 2], classes=["cat", "dog", "owl"], target_transform=lambda label: int(label == 2))
    assert DatasetReader(joined).class_to_idx == {"cat, dog": 0, "owl": 1}
    assert DatasetReader(joined).labels.tolist() == [0, 0, 1, 1]
    from_1 = Listed([1, 2], class_to_idx={"cat": 1, "dog": 2}, target_transform={1: 0, 2: 1}.__getitem__)
    assert DatasetReader(from_1).class_to_idx == {"cat": 0, "dog": 1}
    without = Listed([0, 2], classes=["cat", "dog", "owl"], target_transform=[0, -1, 1].__getitem__)
    assert DatasetReader(without).class_to_idx == {"cat": 0, "owl": 1}
    one_hot = Listed([1, 0], classes=["cat", "dog"], target_transform=lambda label: torch.eye(2)[1 - label])
    assert DatasetReader(one_hot).class_to_idx == {"dog": 0, "cat": 1}
    assert DatasetReader(one_hot).labels.tolist() == [0, 1]


def test_labels_are_listed_without_reading_every_image() -> None:
    class Counting(Listed):
        reads = 0

        def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
            Counting.reads += 1
            return super().__getitem__(index)

    labels = [number % 3 for number in range(50)]
    dataset = Counting(labels, targets=labels, target_transform=lambda label: (label + 1) % 3)
    assert DatasetReader(dataset).labels.tolist() == [(label + 1) % 3 for label in labels]
    assert Counting.reads == 3
    torch_list = Counting(labels, targets=torch.tensor(labels))
    assert DatasetReader(Subset(torch_list, [4, 3])).labels.tolist() == [1, 0]
    assert Counting.reads == 6


def test_a_list_that_is_not_of_the_samples_labels_does_not_count() -> None:
    for listed in ([1, 1, 1], ["cat", "dog"], {"cat": 0, "dog": 1, "owl": 2}, "abc"):
        assert DatasetReader(Listed([2, 1, 0], targets=listed)).labels.tolist() == [2, 1, 0]
    ready = Listed("cba", targets=[2, 1, 0], target_transform="abc".index)  # transformed already
    assert DatasetReader(ready).labels.tolist() == [2, 1, 0]


def test_a_sample_with_another_label_than_its_list_is_refused() -> None:
    dataset = Listed([0, 1, 0, 1, 0], targets=[0, 0, 0, 1, 0], classes=["cat", "dog"])
    reader = DatasetReader(dataset)
    with refused(ValueError, "label of 'Listed[1]' to be the same", "got 0 and 1"):
        reader[1]


def test_a_labeled_image_set_follows_its_own_target_transform(tmp_path: Path) -> None:
    reader = FolderReader(write_images(tmp_path, {"cat": 1, "dog": 2, "owl": 3}))
    dataset = LabeledImages(reader, target_transform=lambda label: 2 - label)
    assert dataset.class_sizes == {"owl": 3, "dog": 2, "cat": 1}
    assert [dataset[index][1] for index in range(6)] == dataset.labels.tolist() == [2, 1, 1, 0, 0, 0]
    wrapped = DatasetReader(dataset)
    assert (wrapped.labels.tolist(), list(wrapped.class_to_idx)) == ([2, 1, 1, 0, 0, 0], ["owl", "dog", "cat"])
    assert class_names(ImageDataset("", reader=reader, target_transform=lambda label: 2 - label)) == list(
        dataset.class_sizes
    )


# Subsets and concatenations


def test_a_subset_has_the_names_and_the_labels_of_its_dataset(tmp_path: Path) -> None:
    dataset = ByNumber(str(numbered_folder(tmp_path)))
    nested = Subset(Subset(dataset, range(4, 22)), [0, 17, 5])
    assert class_names(nested) == class_names(dataset)
    assert DatasetReader(nested).labels.tolist() == [dataset[index][1] for index in (4, 21, 9)]
    first, second = random_split(dataset, [11, 11])
    train_set, val_set = read({"train": first, "val": second})
    assert train_set.class_names == val_set.class_names == class_names(dataset)
    assert len(train_set) == 11


def test_a_concatenation_needs_the_same_names() -> None:
    one, two = (Listed(labels, classes=["cat", "dog"]) for labels in ([0, 1], [1, 1]))
    both = ConcatDataset([Subset(one, [1]), ConcatDataset([two, one])])
    reader = DatasetReader(both)
    assert (reader.class_to_idx, reader.labels.tolist()) == ({"cat": 0, "dog": 1}, [1, 1, 1, 0, 1])
    assert [reader[index][1] for index in range(5)] == [1, 1, 1, 0, 1]
    other = Listed([0], classes=["dog", "cat"])
    with refused(ValueError, "same classes", "['cat', 'dog'] and ['dog', 'cat']"):
        class_names(ConcatDataset([one, other]))


# Unicode


def test_both_forms_of_a_letter_are_the_same_class(tmp_path: Path) -> None:
    assert COMPOSED != DECOMPOSED
    train = write_images(tmp_path / "train", {COMPOSED: 3, "Caff": 3, "zoo": 3})
    val = write_images(tmp_path / "val", {DECOMPOSED: 2, "Caff": 2, "zoo": 2})  # sorted before Caff, not behind it
    assert list(FolderReader(train).class_to_idx) != [normalize("NFC", name) for name in FolderReader(val).class_to_idx]
    train_set, val_set = read(tmp_path)
    assert train_set.class_names == val_set.class_names == ["Caff", COMPOSED, "zoo"]
    for dataset in (train_set, val_set):
        found = {normalize("NFC", Path(dataset.filename(i)).parent.name): dataset[i][1] for i in range(len(dataset))}
        assert found == {"Caff": 0, COMPOSED: 1, "zoo": 2}


def test_a_manifest_has_one_class_for_both_forms_and_agrees_with_a_folder(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {DECOMPOSED: 2, "zoo": 2})
    rows = [f"{DECOMPOSED}/000.png,{COMPOSED}", f"{DECOMPOSED}/001.png,{DECOMPOSED}", "zoo/000.png,zoo"]
    (images / "set.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    reader = ManifestReader(images / "set.csv")
    assert (reader.class_to_idx, reader.labels) == ({COMPOSED: 0, "zoo": 1}, [0, 0, 1])
    assert ManifestReader(images / "set.csv", class_to_idx={DECOMPOSED: 1, "zoo": 0}).labels == [1, 1, 0]
    train_set, val_set = read({"train": images / "set.csv", "val": images})
    assert train_set.class_names == val_set.class_names == [COMPOSED, "zoo"]


def test_a_folder_with_a_class_in_both_forms_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {COMPOSED: 2, DECOMPOSED: 2, "zoo": 2})
    write_images(tmp_path / "val", {COMPOSED: 2, "zoo": 2})
    with refused(ValueError, "each class to have another name", repr(COMPOSED), "NFC and NFD", "Rename one"):
        read(tmp_path)


def test_names_of_the_model_are_compared_in_one_form() -> None:
    classifier = brightness()
    classifier.class_names = [DECOMPOSED, "green", "blue"]
    dataset = Listed([0, 1, 2], classes=["blue", "green", COMPOSED])
    assert [each.support for each in evaluate_classifier(classifier, dataset).classes] == [1, 1, 1]


def test_two_sources_with_the_same_classes_in_another_order_agree() -> None:
    train = Listed([0, 1, 2] * 2, classes=["cat", "dog", "owl"])
    val = Listed([0, 0, 1, 2], classes=["owl", "cat", "dog"])
    train_set, val_set = read({"train": train, "val": val})
    assert val_set.class_names == train_set.class_names == ["cat", "dog", "owl"]
    assert val_set.labels.tolist() == [val_set[index][1] for index in range(4)] == [2, 2, 0, 1]
    assert val_set.class_sizes == {"cat": 1, "dog": 1, "owl": 2}


def test_the_splits_of_a_tar_may_have_a_class_in_two_forms_as_folders_may(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", {DECOMPOSED: 3, "Caff": 3, f"deep/{DECOMPOSED}er": 3})
    write_images(tmp_path / "data" / "val", {COMPOSED: 2, "Caff": 2, f"deep/{COMPOSED}er": 2})
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "data", "set")
    for data in (tmp_path / "data", tmp_path / "set.tar"):
        train_set, val_set = read(data)
        assert set(train_set.class_names) == set(val_set.class_names) == {COMPOSED, "Caff", f"{COMPOSED}er"}
        assert train_set.class_names == val_set.class_names
        assert list(val_set.class_sizes.values()) == [2, 2, 2]


def test_a_split_of_a_tar_with_a_class_in_both_forms_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", {COMPOSED: 2, DECOMPOSED: 2, "zoo": 2})
    write_images(tmp_path / "data" / "val", {COMPOSED: 2, "zoo": 2})
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "data", "set")
    with refused(ValueError, "each class to have another name", repr(COMPOSED), "NFC and NFD", "Rename one"):
        read(tmp_path / "set.tar")

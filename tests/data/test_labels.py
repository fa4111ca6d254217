"""Labels are checked in one way wherever they enter, before anything is trained or evaluated."""

import io
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from refusal import refused
from timm.data.readers.reader import Reader
from tiny_runs import fit, make_trainer
from torch.utils.data import Dataset
from trained_runs import brightness

from timm_accel import create_datasets, evaluate_classifier
from timm_accel.data import FolderReader, LabeledImages
from timm_accel.data.labels import check_label, check_labels, is_unlabeled
from timm_accel.data.readers.dataset_reader import DatasetReader

NAMES = ["red", "green", "blue"]
HALF = (0.5,) * 3


def checked(labels: Any, names: Any = NAMES, **options: Any) -> list[Any]:
    return check_labels(labels, names, lambda index: f"{index}.png", **options).tolist()


# What a label may be


@pytest.mark.parametrize(
    "labels",
    [
        [0, 2, 1],
        (0, 2, 1),
        np.array([0, 2, 1], np.uint8),
        torch.tensor([0, 2, 1]),
        [np.int64(0), np.int16(2), torch.tensor(1)],
        [torch.tensor([0]), torch.tensor([2]), torch.tensor([1])],
        [0.0, 2.0, 1.0],
        np.array([0, 2, 1], np.float32),
        ["red", "blue", "green"],
        [0, "blue", 1.0],
        np.eye(3)[[0, 2, 1]],
        torch.eye(3, dtype=torch.int64)[[0, 2, 1]],
        [[1, 0, 0], [0, 0, 1], [False, True, False]],
    ],
)
def test_every_form_of_a_label_is_an_integer(labels: Any) -> None:
    assert checked(labels, dense=True) == [0, 2, 1]


def test_text_is_a_class_in_either_form_of_unicode() -> None:
    composed, decomposed = normalize("NFC", "Café"), normalize("NFD", "Café")
    assert checked([decomposed, composed, "zoo"], [composed, "zoo"]) == [0, 0, 1]


def test_booleans_are_the_two_classes() -> None:
    for labels in ([True, False, np.True_], np.array([True, False, True]), torch.tensor([True, False, True])):
        assert checked(labels, ["no", "yes"]) == [1, 0, 1]


def test_a_vector_with_several_ones_makes_the_set_multi_label() -> None:
    assert checked(np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]]), dense=True) == [[0, 2], [1], []]


def test_lists_of_a_reader_are_labels_and_not_a_vector() -> None:
    assert checked([[0, 1], [1], []]) == [[0, 1], [1], []]
    assert checked([["blue", "red"], ["red"], None]) == [[2, 0], [0], []]
    assert checked([[0], [1]]) == [[0], [1]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, -1, 1], "-1 for '1.png'"),
        ([0, 3, 1], "3 for '1.png'"),
        (np.array([0, 3, 1]), "3 for '1.png'"),
        (torch.tensor([0, -100, 1]), "-100 for '1.png'"),
        ([0, 2.5, 1], "2.5 for '1.png'"),
        ([0, None, 1], "None for '1.png'"),
        ([0, float("nan"), 1], "nan for '1.png'"),
        (["red", "lime", "green"], "'lime' for '1.png'"),
        ([[0], [3], [1]], "[3] for '1.png'"),
        ([[0], [0, -1], [1]], "[0, -1] for '1.png'"),
        ([0, {"a": 1}, 1], "{'a': 1} for '1.png'"),
    ],
)
def test_a_label_that_is_no_class_is_named_with_its_image(labels: Any, words: str) -> None:
    with refused(ValueError, "labels to be integers from 0 to 2, for 3 classes, but got", words, "Correct them"):
        checked(labels)


def test_the_first_three_images_are_named_and_the_others_counted() -> None:
    with refused(ValueError, "-1 for '0.png', -1 for '1.png', 7 for '2.png'. Correct"):
        checked([-1, -1, 7, 0])
    with refused(ValueError, "7 for '2.png', … (4 of 5 images). Correct"):
        checked([-1, -1, 7, 0, 9])


def test_soft_targets_are_no_labels() -> None:
    with refused(ValueError, "[0.5, 0.5, 0] for '1.png'"):
        checked([[0, 1, 0], [0.5, 0.5, 0]], dense=True)


def test_without_names_labels_have_no_upper_bound() -> None:
    assert checked([0, 900], None) == [0, 900]
    with refused(ValueError, "integers of at least 0, but got -2 for '1.png'"):
        checked([0, -2], None)


@pytest.mark.parametrize("labels", [[-1, -1], [None, None], np.array([-1, -1]), [float("nan"), None], [[], []]])
def test_a_set_in_which_no_image_has_a_label_is_unlabeled(labels: Any) -> None:
    assert is_unlabeled(check_labels(labels, NAMES, str))
    for others in ([0, 1], [[], [1]]):
        assert not is_unlabeled(check_labels(others, NAMES, str))


def test_the_label_of_one_image_is_checked_likewise() -> None:
    assert [check_label(label, NAMES, "a.png") for label in (2, 2.0, "blue", np.int8(2), [2, 0])] == [
        2,
        2,
        2,
        2,
        [2, 0],
    ]
    for label in (-1, 3, None, "lime", 0.5, [0, 3]):
        with refused(ValueError, "from 0 to 2, for 3 classes", f"got {label!r} for 'a.png'"):
            check_label(label, NAMES, "a.png")


# Where labels enter


class Colored(Dataset):
    """Images of three colors, with any labels."""

    classes = NAMES

    def __init__(self, *labels: Any) -> None:
        self.targets = list(labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return Image.new("RGB", (8, 8), NAMES[index % 3]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


class ColoredReader(Reader):
    """A reader of a user, whose labels are listed or not."""

    def __init__(self, *labels: Any, listed: bool = True) -> None:
        super().__init__()
        self.class_to_idx, self.given = {name: label for label, name in enumerate(NAMES)}, list(labels)
        if listed:
            self.labels = self.given

    def __getitem__(self, index: int) -> tuple[bytes, Any]:
        Image.new("RGB", (8, 8), NAMES[index % 3]).save(file := io.BytesIO(), "PNG")
        return file.getvalue(), self.given[index]

    def __len__(self) -> int:
        return len(self.given)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"image {index}"


def read(train: Any, val: Any, **options: Any) -> Any:
    return create_datasets(8, HALF, HALF, data={"train": train, "val": val}, auto_augment=None, **options)


GOOD = (0, 1, 2, 0, 1, 2)


@pytest.mark.parametrize("kind", [Colored, ColoredReader])
@pytest.mark.parametrize("wrong", [-1, 3, 1.5, None])
def test_datasets_and_readers_with_a_wrong_label_are_refused_before_training(kind: Any, wrong: Any) -> None:
    for train, val in ((kind(*GOOD, wrong), kind(*GOOD)), (kind(*GOOD), kind(*GOOD, wrong))):
        with refused(ValueError, "from 0 to 2, for 3 classes, but got", f"{wrong!r} for", "6"):
            read(train, val)


@pytest.mark.parametrize("kind", [Colored, ColoredReader])
def test_a_wrong_label_is_refused_in_evaluation(kind: Any) -> None:
    for wrong in (-1, 3, "lime"):
        with refused(ValueError, "from 0 to 2, for 3 classes, but got", f"{wrong!r} for", "2"):
            evaluate_classifier(brightness(), kind(0, 1, wrong))


@pytest.mark.parametrize("kind", [Colored, ColoredReader])
@pytest.mark.parametrize("missing", [-1, None])
def test_a_set_without_labels_is_neither_trained_nor_evaluated(kind: Any, missing: Any) -> None:
    sentence = "Expected images with labels", "got 3 images such as", "have none. Predict them"
    unlabeled = kind(missing, missing, missing)
    with refused(ValueError, *sentence):
        evaluate_classifier(brightness(), unlabeled)
    with refused(ValueError, *sentence):
        read(unlabeled, kind(*GOOD))
    with refused(ValueError, *sentence):
        read(kind(*GOOD), unlabeled)
    with refused(ValueError, *sentence):
        evaluate_classifier(brightness(), LabeledImages(ColoredReader(-1, -1, -1)))


def test_a_set_without_labels_is_read_for_other_uses() -> None:
    dataset = LabeledImages(ColoredReader(-1, -1, -1))
    assert [label for _, label in dataset] == [-1, -1, -1]
    assert dataset.class_sizes == {"red": 0, "green": 0, "blue": 0}


def test_a_reader_that_lists_no_labels_is_checked_image_by_image() -> None:
    dataset = LabeledImages(ColoredReader(0, 2.0, -1, "blue", listed=False))
    assert [dataset[index][1] for index in (0, 1, 3)] == [0, 2, 2]
    with refused(ValueError, "from 0 to 2, for 3 classes, but got -1 for 'image 2'"):
        dataset[2]


def test_labels_of_any_form_are_trained_as_integers() -> None:
    sets = read(Colored(*map(float, GOOD)), Colored(*np.eye(3)[list(GOOD)]))
    for dataset in sets:
        assert dataset.labels.tolist() == list(GOOD)
        assert dataset.class_sizes == dict.fromkeys(NAMES, 2)
        assert [dataset[index][1] for index in range(6)] == list(GOOD)
        assert all(type(dataset[index][1]) is int for index in range(6))


def test_the_check_of_a_folder_costs_no_python_objects(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 2, "dog": 2})
    reader = FolderReader(tmp_path)
    assert check_labels(reader.labels, None, str).dtype == np.int64
    many = np.zeros(3_000_000, np.int32)
    assert len(check_labels(many, NAMES, str)) == len(many)  # at once, not label by label


def test_a_loss_may_ignore_minus_100_in_a_dataset_that_is_passed_to_the_trainer() -> None:
    class Ignored(Dataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.rand(3, 8, 8), (0, 1, -100, 2)[index]

        def __len__(self) -> int:
            return 4

    trainer = make_trainer(loss_func=torch.nn.CrossEntropyLoss())
    assert fit(trainer, Ignored(), num_epochs=1).num_updates > 0
    with refused(ValueError, "-100 for 'Colored[2]'"):
        read(Colored(0, 1, -100, 2), Colored(*GOOD))


@pytest.mark.parametrize("label", [-1, None, float("nan"), np.int64(-1), torch.tensor(-1)])
def test_a_set_without_splits_and_labels_is_refused_before_it_is_split(label: Any) -> None:
    data = [(Image.new("RGB", (8, 8)), label)] * 6
    with refused(ValueError, "Expected images with labels", "6 images such as 'list[0]'", "Predict them"):
        create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=data)


def test_a_set_without_images_is_refused() -> None:
    with refused(ValueError, "Expected data to hold images, but got none"):
        create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=[])


@pytest.mark.parametrize(("kind", "low", "high"), [("uint16", 0, 513), ("int64", -2, 600), ("uint32", 7, 70000)])
def test_arrays_of_other_integers_are_refused_with_their_values(kind: str, low: int, high: int) -> None:
    pixels = np.full((8, 8, 3), low, kind)
    pixels[1, 2, 0] = high
    with refused(ValueError, "uint8, or float from 0 to 1", f"got {kind} from {low} to {high}. ", "scale them"):
        DatasetReader([(pixels, 0), (pixels, 1)])[0]


def test_an_array_that_cannot_be_written_to_is_read_without_a_warning() -> None:
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    pixels.flags.writeable = False
    for view in (pixels, pixels[::-1], pixels[:, ::2]):
        image, label = DatasetReader([(view, 0), (view, 1)])[1]
        assert (np.asarray(image) == view).all()
        assert label == 1

"""Hugging Face datasets are read from the hub's format and from memory, whatever their columns are called."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from refusal import refused
from trained_runs import brightness

from timm_accel import create_datasets, evaluate_classifier
from timm_accel.data import Source

datasets = pytest.importorskip("datasets", reason="needs the extra hf")
NAMES = ["red", "green", "blue"]
HALF = (0.5,) * 3
LABELS = [0, 1, 2] * 3


def picture(label: int) -> bytes:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., label] = 200
    PillowImage.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def made(labels: Any, feature: Any = None, image: str = "image", label: str = "label", **more: Any) -> Any:
    feature = datasets.ClassLabel(names=NAMES) if feature is None else feature
    features = {image: datasets.Image(), label: feature, **{name: value for name, (value, _) in more.items()}}
    rows = {image: [{"bytes": picture(number % 3), "path": None} for number in range(len(labels))], label: list(labels)}
    rows |= {name: cells for name, (_, cells) in more.items()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def written(form: str, parts: Any, folder: Path) -> Source:
    (folder / "set").mkdir(exist_ok=True)
    for split, part in parts.items():
        part.to_parquet(folder / "set" / f"{split}.parquet")
    return Source(f"{form}/{folder / 'set'}", root=folder / "cache")


def read(data: Any, **options: Any) -> Any:
    return create_datasets(8, HALF, HALF, data=data, auto_augment=None, **options)


def colors_fit(dataset: Any) -> bool:
    dataset.transform = None
    return all(int(np.asarray(image).mean((0, 1)).argmax()) == label for image, label in dataset)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_dataset_and_a_dict_of_them_are_sources() -> None:
    train, val = made(LABELS), made(LABELS[:6])
    for data in (datasets.DatasetDict(train=train, validation=val), {"train": train, "val": val}):
        train_set, val_set = read(data)
        assert (len(train_set), len(val_set)) == (9, 6)
        assert train_set.class_names == val_set.class_names == NAMES
        assert train_set.class_sizes == dict.fromkeys(NAMES, 3)
        assert colors_fit(train_set)
        assert colors_fit(val_set)
    drawn = read(Source(train, val_fraction=0.34))
    assert [part.class_sizes for part in drawn] == [dict.fromkeys(NAMES, 2), dict.fromkeys(NAMES, 1)]
    assert all(map(colors_fit, drawn))
    assert evaluate_classifier(brightness(), val).num_images == 6  # all of it
    assert evaluate_classifier(brightness(), datasets.DatasetDict(validation=val)).metrics["accuracy"] == 1


def test_a_dataset_with_a_format_or_a_selection_is_read_alike() -> None:
    torch_set = made(LABELS).with_format("torch")
    chosen = made(LABELS).select([8, 0, 0, 4, 5, 3])
    train_set, val_set = read({"train": torch_set, "val": chosen})
    assert val_set.labels.tolist() == [2, 0, 0, 1, 2, 0]
    assert train_set.labels.tolist() == LABELS
    val_set.transform = None
    assert [int(np.asarray(image).mean((0, 1)).argmax()) for image, _ in val_set] == [2, 0, 0, 1, 2, 0]


COLUMNS = [
    ("image", "label"),
    ("img", "label"),
    ("img", "fine_label"),
    ("image", "labels"),
    ("photo", "kind"),
    ("pixel_values", "target"),
]


@pytest.mark.parametrize(("image", "label"), COLUMNS)
@pytest.mark.parametrize("form", ["hfds", "hfids", "memory"])
def test_columns_are_found_by_name_and_type(image: str, label: str, form: str, tmp_path: Path) -> None:
    coarse = {"coarse_label": (datasets.ClassLabel(names=["a", "b"]), [0] * 9)} if label == "fine_label" else {}
    parts = {split: made(LABELS, None, image, label, **coarse) for split in ("train", "validation")}
    data = parts if form == "memory" else written(form, parts, tmp_path)
    train_set, val_set = read(data)
    assert train_set.class_names == val_set.class_names == NAMES
    assert sorted(label for _, label in val_set) == sorted(LABELS)


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("string", ["owl", "cat", "owl", "dog"], ["cat", "dog", "owl"]),
        ("int64", [0, 3, 0, 1], ["0", "1", "2", "3"]),
        ("float32", [0.0, 2.0, 0.0, 1.0], ["0", "1", "2"]),
    ],
)
@pytest.mark.parametrize("form", ["hfds", "hfids", "memory"])
def test_labels_that_are_text_or_numbers_are_numbered_over_all_splits(
    kind: str, labels: Any, names: Any, form: str, tmp_path: Path
) -> None:
    parts = {"train": made(labels, datasets.Value(kind)), "validation": made(labels[2:3], datasets.Value(kind))}
    train_set, val_set = read(parts if form == "memory" else written(form, parts, tmp_path))
    assert train_set.class_names == val_set.class_names == names
    assert [label for _, label in val_set] == [names.index(str(labels[2]).removesuffix(".0"))]


def test_lists_of_labels_are_multi_label_and_refused_in_a_stream(tmp_path: Path) -> None:
    feature = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    parts = {"train": made([[0], [1, 2], []], feature, "image", "labels"), "validation": made([[0], [1]], feature)}
    parts["validation"] = parts["validation"].rename_column("label", "labels")
    train_set, val_set = read(datasets.DatasetDict(parts))
    assert [target.tolist() for _, target in train_set] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert [target.tolist() for _, target in val_set] == [[1, 0, 0], [0, 1, 0]]
    assert read(written("hfds", parts, tmp_path))[0].class_sizes == dict.fromkeys(NAMES, 1)
    with refused(ValueError, "one label for each image of hfids/", "lists in 'labels'", "Use hfds/"):
        read(written("hfids", parts, tmp_path))


@pytest.mark.parametrize("form", ["hfds", "memory"])
def test_a_test_split_without_labels_trains_with_the_others_and_is_not_evaluated(form: str, tmp_path: Path) -> None:
    parts = {"train": made(LABELS), "validation": made(LABELS), "test": made([-1] * 4)}
    data = parts if form == "memory" else written(form, parts, tmp_path)
    assert [len(part) for part in read(data)] == [9, 9]
    for use in (
        lambda: read(data, eval_split="test"),
        lambda: evaluate_classifier(brightness(), data, eval_split="test"),
    ):
        with refused(ValueError, "images with labels", "got 4 images", "have none", "Predict them"):
            use()


def test_labels_that_are_no_class_are_named() -> None:
    parts = {"train": made([0, 1, -1, 2, -1]), "val": made(LABELS)}
    with refused(
        ValueError, "from 0 to 2, for 3 classes", "-1 for 'the mapping train[2]', -1 for 'the mapping train[4]'"
    ):
        read(parts)


def test_splits_that_name_their_classes_differently_are_refused() -> None:
    other = made(LABELS, datasets.ClassLabel(names=["red", "lime", "blue"]))
    with refused(ValueError, "name the same classes", "train: ['red', 'green'", "val: ['red', 'lime'", "ClassLabel"):
        read({"train": made(LABELS), "val": other})


def test_columns_that_are_missing_or_a_stream_in_memory_are_refused() -> None:
    for part in (
        made(LABELS, None, "image", "a", b=(datasets.ClassLabel(names=["x"]), [0] * 9)),
        made(LABELS).remove_columns("label"),
    ):
        with refused(
            ValueError, "the columns 'image' and 'label'", "'img'", "'fine_label'", str(sorted(part.column_names))
        ):
            read(part)
    with refused(TypeError, "Expected data to be a path", "got IterableDataset", "hfids/NAME"):
        read(made(LABELS).to_iterable_dataset())
    with refused(FileNotFoundError, "hfds/NAME", "'/nothing/here'", "Correct the name"):
        read("hfds//nothing/here")
    with refused(ValueError, "a split 'val'", "the mapping", "['train'] alone"):
        read(datasets.DatasetDict(train=made(LABELS)))


@pytest.mark.parametrize("empty", [0, 4, 8])
def test_a_cell_without_an_image_is_an_unreadable_image(empty: int) -> None:
    data = made(LABELS)
    data = data.map(lambda row, number: {"image": None} if number == empty else row, with_indices=True)
    train_set = read({"train": data, "val": made(LABELS)})[0]
    assert [number for number in range(9) if train_set.why_unreadable(number) == "an empty cell"] == [empty]
    assert [train_set[number][1] for number in range(9) if number != empty] == LABELS[:empty] + LABELS[empty + 1 :]

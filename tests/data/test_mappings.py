"""A dataset whose splits are several manifests, or datasets whose samples come in many forms."""

import csv
import io
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from refusal import refused
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision.transforms.functional import to_tensor

from timm_accel import create_datasets
from timm_accel.data import Source
from timm_accel.data.readers.dataset_reader import as_image

NAMES = ["cat", "dog", "owl"]
HALF = (0.5,) * 3


def read(data: Any, **options: Any) -> Any:
    return create_datasets(8, HALF, HALF, data=data, auto_augment=None, **options)


def write_manifest(file: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = ("path", "label")) -> Path:
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows])
    return file


def rows(*names: str, numbers: range = range(2)) -> list[tuple[str, str]]:
    return [(f"images/{name}/{number:03d}.png", name) for name in names for number in numbers]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", dict.fromkeys(NAMES, 6))
    return tmp_path


# Manifests


@pytest.mark.parametrize("form", ["mapping", "folder", "synonyms", "texts"])
def test_a_manifest_for_each_split_is_one_dataset(form: str, folder: Path) -> None:
    names = ("training", "valid", "test") if form == "synonyms" else ("train", "val", "test")
    files = {
        names[0]: write_manifest(folder / f"{names[0]}.csv", *rows("cat", "owl", numbers=range(3))),
        names[1]: write_manifest(folder / f"{names[1]}.csv", *rows("owl", "dog")),  # another first class
        names[2]: write_manifest(folder / f"{names[2]}.csv", *rows("dog")),
    }
    data = {"mapping": files, "texts": {name: str(file) for name, file in files.items()}}.get(form, folder)
    train_set, val_set = read(data)
    assert train_set.class_names == val_set.class_names == NAMES
    assert train_set.class_sizes == {"cat": 3, "dog": 0, "owl": 3}
    assert val_set.class_sizes == {"cat": 0, "dog": 2, "owl": 2}
    assert [val_set[index][1] for index in range(4)] == [2, 2, 1, 1]
    assert read(data, eval_split="test")[1].class_sizes == {"cat": 0, "dog": 2, "owl": 0}


def test_manifests_of_parquet_and_a_root_are_read_alike(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    (folder / "tables").mkdir()
    for split, some in (("train", rows(*NAMES)), ("val", rows("dog"))):
        columns = dict(zip(("path", "label"), map(list, zip(*some, strict=True)), strict=True))
        pytest.importorskip("pyarrow.parquet").write_table(
            pyarrow.table(columns), folder / "tables" / f"{split}.parquet"
        )
    train_set, val_set = read(Source(folder / "tables", root=folder))
    assert (train_set.class_names, val_set.labels.tolist()) == (NAMES, [1, 1])


def test_a_folder_of_manifests_needs_the_split_that_is_asked_for(folder: Path) -> None:
    write_manifest(folder / "train.csv", *rows(*NAMES))
    with refused(ValueError, "a split 'val'", str(folder), "['train'] alone"):
        read(folder)


def test_images_beside_their_manifests_may_lie_in_folders_of_splits(tmp_path: Path) -> None:
    """As Kaggle has it: train.csv lists the files in train/, and test.csv has no labels."""
    write_images(tmp_path, {"train": 6, "val": 4, "test": 2})
    write_manifest(tmp_path / "train.csv", *[(f"train/{i:03d}.png", NAMES[i % 3]) for i in range(6)])
    write_manifest(tmp_path / "val.csv", *[(f"val/{i:03d}.png", NAMES[i % 2]) for i in range(4)])
    write_manifest(tmp_path / "test.csv", ("test/000.png",), ("test/001.png",), columns=("path",))
    train_set, val_set = read(tmp_path)
    assert (len(train_set), val_set.class_sizes) == (6, {"cat": 2, "dog": 2, "owl": 0})
    with refused(ValueError, "a column 'path' and a column 'label'", "test.csv", "['path']"):
        read(tmp_path, eval_split="test")


def test_folders_of_classes_come_before_manifests(folder: Path) -> None:
    for split in ("train", "val"):
        write_images(folder / "set" / split, {"a": 2, "b": 2})
        write_manifest(folder / "set" / f"{split}.csv", ("nothing.png", "c"))
    assert read(folder / "set")[0].class_names == ["a", "b"]


def test_a_table_about_something_else_is_no_manifest(tmp_path: Path) -> None:
    write_images(tmp_path, dict.fromkeys(NAMES, 4))
    write_manifest(tmp_path / "train.csv", ("1", "0.5"), columns=("epoch", "loss"))
    assert read(tmp_path)[0].class_names == NAMES
    (tmp_path / "alone").mkdir()
    write_manifest(tmp_path / "alone" / "train.csv", ("1", "cat"), columns=("id", "label"))
    with refused(ValueError, "a column 'path' and a column 'label'", "['id', 'label']"):
        read(tmp_path / "alone")


@pytest.mark.parametrize("form", ["mapping", "folder", "column"])
def test_a_split_with_one_label_an_image_is_multi_label_beside_others(form: str, folder: Path) -> None:
    train = [("images/cat/000.png", "cat;dog"), ("images/owl/000.png", "owl"), ("images/dog/000.png", "")]
    val = [("images/cat/001.png", "cat"), ("images/dog/001.png", "dog")]
    if form == "column":
        lines = [*[(*row, "train") for row in train], *[(*row, "val") for row in val]]
        data: Any = write_manifest(folder / "set.csv", *lines, columns=("path", "label", "split"))
    else:
        files = {"train": write_manifest(folder / "train.csv", *train), "val": write_manifest(folder / "val.csv", *val)}
        data = files if form == "mapping" else folder
    train_set, val_set = read(data)
    assert [target.tolist() for _, target in train_set] == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert [target.tolist() for _, target in val_set] == [[1, 0, 0], [0, 1, 0]]
    assert train_set.class_sizes == dict.fromkeys(NAMES, 1)


def test_a_folder_beside_a_multi_label_manifest_is_multi_label(folder: Path) -> None:
    train = write_manifest(folder / "train.csv", ("images/cat/000.png", "cat;dog"), ("images/owl/000.png", "owl"))
    train_set, val_set = read({"train": train, "val": folder / "images"})
    assert train_set[0][1].tolist() == [1, 1, 0]
    assert val_set[17][1].tolist() == [0, 0, 1]
    assert val_set.labels[17] == [2]


def test_a_multi_label_split_without_any_label_is_not_evaluated(folder: Path) -> None:
    lines = [("images/cat/000.png", "cat;dog", "train"), ("images/dog/000.png", "", "test")]
    path = write_manifest(folder / "set.csv", *lines, columns=("path", "label", "split"))
    with refused(ValueError, "images with labels", "got 1 images such as 'images/dog/000.png'", "Predict them"):
        read(path, eval_split="test")


def test_a_misspelled_split_stops_before_training(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        (*row, split) for row, split in zip(rows(*NAMES), ["train", "val", "train", "vla", "train", "val"], strict=True)
    ]
    path = write_manifest(folder / "set.csv", *lines, columns=("path", "label", "split"))
    with caplog.at_level(logging.INFO), refused(ValueError, "'vla' in row 5", "Did you mean 'val'?"):
        read(path)
    assert caplog.records == []


# Samples of torch datasets

PIXELS = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in (10, 130, 250)])


class Samples(Dataset):
    """Any samples."""

    classes = NAMES

    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)


class Named(NamedTuple):
    image: Any
    label: Any
    index: int


def encoded(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


IMAGES = {
    "PIL": Image.fromarray,
    "array": lambda pixels: pixels,
    "gray array": lambda pixels: pixels[..., 0],
    "float array": lambda pixels: pixels / np.float32(255),
    "tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "gray tensor": lambda pixels: torch.from_numpy(pixels)[..., 0],
    "float tensor": lambda pixels: to_tensor(pixels),
    "half tensor": lambda pixels: to_tensor(pixels).double(),
    "bytes": encoded,
}


def values(dataset: Any) -> list[int]:
    dataset.transform = None
    return [int(np.asarray(dataset[index][0])[0, 0, 0]) for index in range(len(dataset))]


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("cache", [None, "memory"])
def test_images_come_in_many_forms(kind: str, cache: Any) -> None:
    dataset = Samples(*[(IMAGES[kind](PIXELS[label]), label) for label in (2, 0, 1)])
    train_set, _ = read({"train": dataset, "val": dataset}, cache=cache)
    assert train_set[0][0].shape == (3, 8, 8)
    assert values(train_set) == [250, 10, 130]
    assert train_set.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_every_shade_of_a_float_image_is_exact(kind: torch.dtype) -> None:
    shades = torch.arange(256).view(1, 16, 16)
    found = np.asarray(as_image((shades.double() / 255).to(kind)))
    assert np.array_equal(found, shades[0].numpy())


@pytest.mark.parametrize(
    "make",
    [
        lambda image, label: {"image": image, "label": label},
        lambda image, label: {"img": image, "labels": label, "id": 5},
        lambda image, label: {"pixel_values": image, "fine_label": NAMES[label]},
        lambda image, label: {"image": image, "target": torch.eye(3)[label]},
        lambda image, label: Named(image, label, 7),
        lambda image, label: [image, np.eye(3)[label].tolist()],
    ],
)
def test_samples_come_in_many_forms(make: Any) -> None:
    dataset = Samples(*[make(Image.fromarray(PIXELS[label]), label) for label in (2, 0, 1)])
    train_set, _ = read({"train": dataset, "val": dataset})
    assert (values(train_set), train_set.labels.tolist()) == ([250, 10, 130], [2, 0, 1])


def test_a_list_of_samples_and_a_tensor_dataset_are_datasets() -> None:
    some = [(Image.fromarray(PIXELS[label]), label) for label in (2, 0, 1)]
    train_set, _ = read({"train": some, "val": some})
    assert (values(train_set), train_set.class_names) == ([250, 10, 130], ["0", "1", "2"])
    tensors = TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor([0, 2, 1]))
    assert read({"train": tensors, "val": tensors})[0].labels.tolist() == [0, 2, 1]


def test_paths_are_images_of_a_dataset(tmp_path: Path) -> None:
    write_images(tmp_path, dict.fromkeys(NAMES, 1))
    dataset = Samples(
        *[(str(path) if label else path, label) for label, path in enumerate(sorted(tmp_path.rglob("*.png")))]
    )
    train_set, _ = read({"train": dataset, "val": dataset})
    train_set.transform = None
    assert [int(np.asarray(image).mean((0, 1)).argmax()) for image, _ in train_set] == [0, 1, 2]


def test_targets_with_several_ones_are_multi_label() -> None:
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    several = Samples(*zip(images, torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]]), strict=True))
    single = Samples(*zip(images, torch.eye(3), strict=True))
    train_set, val_set = read({"train": several, "val": single})  # the set is multi-label, not one split of it
    assert [target.tolist() for _, target in train_set] == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert [target.tolist() for _, target in val_set] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert read({"train": single, "val": single})[0].labels.tolist() == [0, 1, 2]
    assert read({"train": single, "val": several})[0][1][1].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (torch.randn(3, 8, 8), ValueError, "uint8, or float from 0 to 1, but got torch.float32 from -"),
        (
            torch.full((3, 8, 8), 255.0),
            ValueError,
            "but got torch.float32 from 255 to 255. Leave out the normalization",
        ),
        (np.zeros((8, 8, 3), np.int64), ValueError, "but got int64 from 0 to 0"),
        (
            np.zeros((3, 8, 8), np.uint8),
            ValueError,
            "tensors (C, H, W) of 1, 3 or 4 channels, but got an array (3, 8, 8)",
        ),
        (torch.zeros(8, 8, 3), ValueError, "but got a tensor (8, 8, 3). Transpose them"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "but got an array (0, 8, 3)"),
        (5, TypeError, "PIL images, arrays, tensors, bytes or paths, but got int"),
    ],
)
def test_an_image_of_another_kind_is_refused_before_training(image: Any, error: Any, words: str) -> None:
    dataset = Samples((image, 0), (image, 1))
    with refused(error, words):
        read({"train": dataset, "val": dataset})


def test_samples_without_image_or_label_are_refused() -> None:
    image = Image.fromarray(PIXELS[0])
    with refused(TypeError, "a dict to have an image as one of ['image', 'img'", "but got ['photo', 'label']"):
        read(Samples({"photo": image, "label": 0}))
    for sample in (image, (image,), {"image": image}):
        with refused(ValueError, "images with labels", "got 2 images such as 'Samples[0]'"):
            read({"train": Samples(sample, sample), "val": Samples(sample)})


def test_data_without_indices_are_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    for data in (Stream(), 5, {"train": {"a": 1}, "val": Stream()}, iter([])):
        with refused(TypeError, "Expected data to be a path, a name such as 'torch/mnist'", "Collect its samples"):
            read(data)

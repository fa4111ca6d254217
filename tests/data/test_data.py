"""The data builder, and the digits."""

from pathlib import Path

import pytest
import torch
from torchvision.datasets import FakeData

from timm_accel.data import class_names, create_datasets, write_digits

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def test_both_splits_have_images_of_the_size_and_classes_in_natural_order(image_folder: Path) -> None:
    train, val = create_datasets((24, 16), MEAN, STD, image_folder / "train", image_folder / "val")
    assert (len(train), len(val)) == (19, 9)
    assert train.class_names == val.class_names == class_names(train) == ["cat", "dog", "owl"]
    assert train.class_sizes == {"cat": 7, "dog": 6, "owl": 6}
    for dataset in (train, val):
        image, label = dataset[len(dataset) - 1]
        assert image.shape == (3, 24, 16)
        assert label == 2


def test_evaluation_images_are_normalized_and_fixed(image_folder: Path) -> None:
    datasets = [
        create_datasets(16, mean, STD, image_folder / "train", image_folder / "val", crop_pct=1.0)[1]
        for mean in (MEAN, (0.0, 0.0, 0.0))
    ]
    shift = datasets[1][0][0] - datasets[0][0][0]
    assert torch.allclose(shift, torch.tensor(MEAN).div(0.2)[:, None, None].expand_as(shift), atol=1e-5)
    assert torch.equal(datasets[0][0][0], datasets[0][0][0])


def test_training_options_reach_timms_transform(image_folder: Path) -> None:
    paths = (image_folder / "train", image_folder / "val")
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": 0.0, "auto_augment": None}
    still, _ = create_datasets(16, MEAN, STD, *paths, **options, interpolation="bilinear")
    assert torch.equal(still[0][0], still[0][0])
    mirrored, _ = create_datasets(16, MEAN, STD, *paths, **(options | {"hflip": 1.0}), interpolation="bilinear")
    assert torch.equal(mirrored[0][0], still[0][0].flip(2))
    augmented, _ = create_datasets(16, MEAN, STD, *paths)
    assert "RandAugment" in str(augmented.transform)


def test_class_names_come_from_wherever_they_are() -> None:
    class Torchvision:
        classes = ("a", "b")

    assert class_names(Torchvision()) == ["a", "b"]
    assert class_names(FakeData(2)) is None


def test_digits_are_written_once_and_always_the_same(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    first = write_digits(tmp_path / "one")
    files = {path.relative_to(first): path.read_bytes() for path in first.rglob("*.png")}
    assert len(files) == 1797
    assert {path.parts[0] for path in files} == {"train", "val"}
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.png")}
    assert write_digits(tmp_path / "one") == first
    assert times == {path: path.stat().st_mtime_ns for path in first.rglob("*.png")}
    second = write_digits(tmp_path / "two")
    assert files == {path.relative_to(second): path.read_bytes() for path in second.rglob("*.png")}
    sizes = [len(list((first / "val" / str(digit)).iterdir())) for digit in range(10)]
    assert min(sizes) >= 43
    assert max(sizes) <= 46
    assert list(tmp_path.iterdir()) == [first, second] or set(tmp_path.iterdir()) == {first, second}

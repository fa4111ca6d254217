"""Grayscale images stay in one channel until a step mixes channels, and every pixel is that of timm's transform."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import MaybePILToTensor
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor

from timm_accel.data import PrepareImage, create_datasets
from timm_accel.data.seeding import SampleKey, SeededDataset
from timm_accel.data.transforms.late_color import ToPlanes, color_late
from timm_accel.data.transforms.prepare_image import read_image

GRAY = np.random.default_rng(0).integers(0, 256, (8, 37, 45), dtype=np.uint8)
TRAINING: dict[str, dict[str, Any]] = {
    "crop and flips": {"auto_augment": None, "color_jitter": 0.0, "vflip": 0.5},
    "RandAugment, which fills with a color": {"auto_augment": "rand-m9-n3-mstd0.5-inc1"},
    "AugMix": {"auto_augment": "augmix-m5-w2-d2"},
    "jitter, blur": {"auto_augment": None, "color_jitter": 0.4, "gaussian_blur_prob": 0.5, "grayscale_prob": 0.5},
    "cached": {"auto_augment": None, "cache": "memory"},
    "another crop": {"auto_augment": None, "train_crop_mode": "rkrr"},
    "colored border in evaluation": {"auto_augment": None, "crop_mode": "border"},
    "padded evaluation": {"auto_augment": None, "crop_pct": 1.5},
    "squashed evaluation": {"auto_augment": None, "crop_mode": "squash"},
}


def folder_of(root: Path, mode: str) -> Path:
    """Write the images as files of a mode, two of them turned by EXIF."""
    for number, pixels in enumerate(GRAY):
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 3 == 1 else 1
        path = root / mode / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path, exif=exif)
    return root / mode


def samples(folder: Path, **options: Any) -> Iterator[torch.Tensor]:
    train_set, val_set = create_datasets(16, (0.5, 0.4, 0.3), (0.2,) * 3, folder, folder, **options)
    seeded = SeededDataset(train_set, 0)
    for number in range(len(GRAY)):
        yield seeded[SampleKey(0, number, number)][0]
        yield val_set.load(number)[0]


@pytest.mark.parametrize("name", TRAINING)
def test_grayscale_files_give_the_pixels_of_equal_files_in_color(name: str, tmp_path: Path) -> None:
    gray, color = (list(samples(folder_of(tmp_path, mode), **TRAINING[name])) for mode in ("L", "RGB"))
    assert all(map(torch.equal, gray, color))
    assert {(tuple(each.shape), each.dtype) for each in gray} == {((3, 16, 16), torch.uint8)}


@pytest.mark.parametrize("mode", ["1", "LA", "P", "I;16", "RGBA"])
def test_pixels_of_other_modes_are_those_of_a_conversion_before_the_crop(mode: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, mode)
    train_set, val_set = create_datasets(16, (0.5,) * 3, (0.2,) * 3, folder, folder, auto_augment=None)
    train_set.prepare = val_set.prepare = PrepareImage()
    wanted = [SeededDataset(train_set, 0)[SampleKey(0, number, number)][0] for number in range(len(GRAY))]
    found = list(samples(folder, auto_augment=None))[::2]
    assert all(map(torch.equal, found, wanted))


def test_a_grayscale_jpeg_is_drafted_as_the_same_one_in_color(tmp_path: Path) -> None:
    large = Image.fromarray(GRAY[0]).resize((300, 400), Image.Resampling.BICUBIC)
    for mode in ("L", "RGB"):
        for number in range(2):
            (tmp_path / mode / str(number)).mkdir(parents=True)
            large.convert(mode).save(tmp_path / mode / str(number) / "0.jpg")
    found = []
    for mode in ("L", "RGB"):
        train_set, _ = create_datasets(16, (0.5,) * 3, (0.2,) * 3, *[tmp_path / mode] * 2, draft=True)
        found.append([SeededDataset(train_set, 0)[SampleKey(0, number, 0)][0] for number in range(8)])
    assert all(map(torch.equal, *found))


def names(transform: Any) -> list[str]:
    return [type(step).__name__ for step in transform.transforms]


def test_color_comes_after_the_crop_and_before_the_first_step_that_mixes_channels(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "L")
    sets = [create_datasets(16, (0.5,) * 3, (0.2,) * 3, folder, folder, auto_augment=policy, color_jitter=jitter)
            for policy, jitter in ((None, 0.0), (None, 0.4), ("rand-m7", 0.4))]  # fmt: skip
    crop, last = ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip"], "ToPlanes"
    assert [names(train_set.transform) for train_set, _ in sets] == [
        [*crop, "ColorJitter", last], [*crop, "ToRGB", "ColorJitter", last], [*crop, "ToRGB", "RandAugment", last]
    ]  # fmt: skip
    train_set, val_set = sets[0]
    assert names(val_set.transform) == ["Resize", "CenterCrop", "ToPlanes"]
    assert names(train_set.transform_of_size(input_size=(8, 8))) == names(train_set.transform)
    with train_set.reader[0][0] as file:
        assert read_image(file, train_set.prepare, train_set.transform).mode == "L"
    one_channel, _ = create_datasets(16, (0.5,), (0.2,), folder, folder)
    assert "ToRGB" not in names(one_channel.transform)
    assert one_channel.load(0)[0].shape == (1, 16, 16)


class Brighter:
    def __call__(self, image: Any) -> Any:
        assert image.mode == "RGB"
        return image.point(lambda value: min(255, value + 1))


@pytest.mark.parametrize("draft", [False, True])
def test_a_transform_that_a_user_sets_or_changes_gets_color(draft: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "L")

    def dataset() -> Any:
        options = {"auto_augment": None, "color_jitter": 0.0, "draft": draft}
        return create_datasets(16, (0.5,) * 3, (0.2,) * 3, folder, folder, **options)[0]

    theirs = dataset()
    theirs.transform = Brighter()
    assert theirs.load(0)[0].mode == "RGB"
    theirs.transform = None
    assert theirs.load(0)[0].mode == "RGB"
    for change in (lambda steps: steps.insert(0, Brighter()), lambda steps: steps.pop()):
        changed = dataset()
        change(changed.transform.transforms)
        assert not changed.transform.takes_gray
        assert len(np.asarray(changed.load(0)[0]).shape) == 3
    added = dataset()
    added.transform = Compose([added.transform, lambda planes: planes + 1])
    assert added.load(0)[0].shape == (3, 16, 16)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (224, 97)])
def test_planes_are_timms_tensor_with_contiguous_rows(size: tuple[int, int]) -> None:
    color = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    gray = color.convert("L")
    for image, channels, wanted in ((color, 3, color), (gray, 3, gray.convert("RGB")), (gray, 1, gray)):
        found = ToPlanes(channels)(image)
        assert torch.equal(found, pil_to_tensor(wanted))
        assert found.stride(-1) == 1
        found += 1  # writable


def test_a_transform_of_a_tensor_alone_stays_as_it_is() -> None:
    assert names(color_late(Compose([MaybePILToTensor()]), 3)) == ["ToPlanes"]


def test_a_file_is_decoded_without_a_copy_and_the_image_of_a_user_is_copied() -> None:
    image = Image.fromarray(GRAY[0]).convert("RGB")
    assert PrepareImage()(image) is image
    prepared = read_image(image, PrepareImage())
    prepared.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (GRAY[0, 0, 0],) * 3

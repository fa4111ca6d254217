"""The audit tells which images of more than 8 bits need a `pixel_range`, and which one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from refusal import refused

from timm_accel.audit import Audit, audit
from timm_accel.data import ImageFolderDataset


def look_at(data: Any, **options: Any) -> Audit:
    return audit(data, **({"num_workers": 0, "progress": False} | options))


def write_wide(root: Path, dtype: Any, top: float, low: float = 0.0, count: int = 10) -> Path:
    """Write two classes of noise between two values."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.uniform(low, top, (16, 16))
            pixels[0, :2] = low, top
            kind = "PNG" if dtype is np.uint16 else "TIFF"
            Image.fromarray(pixels.astype(dtype)).save(root / name / f"{number}.png", kind)
    return root


@pytest.mark.parametrize(
    ("dtype", "top", "low", "words"),
    [
        (np.uint16, 4095, 0, "from 0 to 4095, a small part of (0, 65535), so that they are dark: pass "
                             "pixel_range=(0, 4095) to create_datasets."),
        (np.uint16, 1000, 0, "from 0 to 1000, a small part of (0, 65535), so that they are dark: pass "
                             "pixel_range=(0, 1023) to create_datasets."),
        (np.float32, 300, 0, "the images do not agree on a scale: pass pixel_range, such as (0, 300)."),
        (np.float32, 2, -1, "the images do not agree on a scale: pass pixel_range, such as (-1, 2)."),
        (np.int32, 4000, 0, "the images do not agree on a scale: pass pixel_range, such as (0, 4095)."),
    ],
)  # fmt: skip
def test_a_range_is_proposed(dtype: Any, top: float, low: float, words: str, tmp_path: Path) -> None:
    found = look_at(write_wide(tmp_path / "train", dtype, top, low))
    (sentence,) = found.problems()
    assert sentence.startswith("train: the pixels of 20 images of more than 8 bits are from ")
    assert sentence.endswith(words)
    assert found.unreadable == ()
    assert found.splits["train"].wide_pixels is not None
    assert (found.splits["train"].wide_pixels.low, found.splits["train"].wide_pixels.high) == (low, top)
    proposed = eval(words.rpartition("(")[2].partition(")")[0])
    assert look_at(tmp_path / "train", pixel_range=proposed).problems() == []
    dataset = ImageFolderDataset(tmp_path / "train", pixel_range=proposed)
    assert look_at({"train": dataset}).problems() == []


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 60000), (np.float32, 1), (np.float32, 250), (np.int32, 60000)])
def test_images_that_use_their_range_need_none(dtype: Any, top: float, tmp_path: Path) -> None:
    assert look_at(write_wide(tmp_path / "train", dtype, top)).problems() == []


def test_the_colors_are_those_of_the_range(tmp_path: Path) -> None:
    write_wide(tmp_path / "train", np.uint16, 4095)
    dark, bright = look_at(tmp_path / "train"), look_at(tmp_path / "train", pixel_range=(0, 4095))
    assert dark.splits["train"].mean == pytest.approx((0.031,) * 3, abs=0.002)
    assert bright.splits["train"].mean == pytest.approx((0.5,) * 3, abs=0.02)


def test_pixels_outside_the_range_are_counted(tmp_path: Path) -> None:
    write_wide(tmp_path / "train", np.uint16, 4095)
    (sentence,) = look_at(tmp_path / "train", pixel_range=(0, 2000)).problems()
    assert (
        "20 of them have pixels outside pixel_range=(0, 2000), which are clipped: pass pixel_range=(0, 4095)"
        in sentence
    )


def test_pixels_that_are_not_finite_are_unreadable(tmp_path: Path) -> None:
    write_wide(tmp_path / "train", np.float32, 1)
    pixels = np.zeros((8, 8), np.float32)
    pixels[1, 2] = np.nan
    Image.fromarray(pixels).save(tmp_path / "train" / "cat" / "bad.png", "TIFF")
    (file,) = look_at(tmp_path / "train").unreadable
    assert file.error == "pixels that are NaN or infinite: replace them"


def test_8_bits_have_no_range_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 10, "dog": 10})
    assert look_at(tmp_path / "train").splits["train"].wide_pixels is None
    with refused(ValueError, "Expected pixel_range to be two rising numbers", "got (3, 2)"):
        look_at(tmp_path / "train", pixel_range=(3, 2))

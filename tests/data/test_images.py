"""Every kind of image becomes what the model expects."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusal import refused
from timm.data import ImageDataset, create_transform

from timm_accel.data.transforms.prepare_image import PrepareImage, read_image

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes, **options) -> np.ndarray:
    return np.asarray(read_image(data, PrepareImage(**options)))


def test_colors_stay_as_timm_decodes_them() -> None:
    for data in (encoded(Image.fromarray(COLOURS)), encoded(Image.fromarray(COLOURS), "JPEG")):
        assert np.array_equal(read(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "LA"])
def test_other_modes_become_rgb_or_gray_as_pillow_converts_them(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    assert np.array_equal(read(data), np.asarray(image.convert("RGB")))
    assert np.array_equal(read(data, channels=1), np.asarray(image.convert("L")))


def test_a_palette_with_transparency_does_not_warn() -> None:
    image = Image.fromarray(COLOURS).convert("P")
    data = encoded(image, transparency=bytes(range(256)))
    assert read(data).shape == (12, 20, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_clipped(channels: int) -> None:
    grey = np.arange(240, dtype=np.uint16).reshape(12, 20) * 257
    data = encoded(Image.fromarray(grey))
    assert np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean() > 250  # Pillow alone turns it white
    found = read(data, channels=channels)
    expected = (grey // 257).astype(np.uint8)
    assert np.array_equal(found if channels == 1 else found[..., 0], expected)
    assert found.min() == 0
    assert found.max() == 239


@pytest.mark.parametrize(("top", "full"), [(1.0, 1.0), (0.5, 1.0), (200.0, 255.0), (4000.0, 4000.0)])
def test_floats_are_scaled_by_the_range_of_the_dataset(top: float, full: float) -> None:
    pixels = np.linspace(0, top, 240, dtype=np.float32).reshape(12, 20)
    found = read(encoded(Image.fromarray(pixels), "TIFF"), channels=1, pixel_range=(0, full))
    assert np.abs(found - pixels * 255 / full).max() <= 0.51


def test_32_bit_integers_are_scaled_by_the_range_of_the_dataset() -> None:
    for full in (65535, 2**31 - 1):
        data = encoded(Image.fromarray(np.array([[0, full]], dtype=np.int32)), "TIFF")
        assert read(data, channels=1, pixel_range=(0, full)).tolist() == [[0, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_image_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = read(encoded(Image.fromarray(COLOURS), exif=exif))
    flips = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, -1),
        7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
        8: np.rot90(COLOURS),
    }
    assert np.array_equal(turned, flips[orientation])


def test_it_serves_timms_dataset(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((8, 8), 257 * 100, dtype=np.uint16)).save(tmp_path / "cat" / "grey.png")
    transform = create_transform(8, mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)
    transform.transforms.insert(0, PrepareImage())
    image, _ = ImageDataset(str(tmp_path), input_img_mode=None, transform=transform)[0]
    assert image.mul(255).round().unique().tolist() == [100]


@pytest.mark.parametrize("data", [b"", b"no image", encoded(Image.fromarray(COLOURS))[:-40]])
def test_what_cannot_be_decoded_is_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(OSError, match=r"\w"):
        read(data)


def test_other_numbers_of_channels_are_refused() -> None:
    with refused(ValueError, "channels", "1 or 3", "got 4", "1 is grayscale"):
        PrepareImage(4)

"""Broken EXIF never refuses an image, and one file cannot fill the memory."""

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from refusal import refused
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import Compose, Resize, v2
from trained_runs import brightness

from timm_accel import create_datasets
from timm_accel.audit import audit
from timm_accel.data.transforms.create import create_training_transform
from timm_accel.data.transforms.drafted_crop import take_crop
from timm_accel.data.transforms.image_size import check_resized, max_pixels
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image

COLORS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
ORIENTATION, X_RESOLUTION, IMAGE_WIDTH = 0x0112, 0x011A, 0x0100
SHORT, TEXT, RATIONAL, FLOAT = 3, 2, 5, 11


def exif(*entries: tuple[int, int, bytes], declared: int | None = None) -> bytes:
    """An EXIF block of (tag, type, value); `declared` is the number of entries that it claims to have."""
    start = 8 + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries) if declared is None else declared), b""
    size = {SHORT: 2, TEXT: 1, RATIONAL: 8, FLOAT: 4}
    for tag, kind, value in entries:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(values))
        values += value if len(value) > 4 else b""
        directory += struct.pack("<HHI", tag, kind, len(value) // size[kind]) + place
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values


TURNED = (ORIENTATION, SHORT, struct.pack("<H", 6))
BROKEN = {
    "resolution as text": exif(TURNED, (X_RESOLUTION, TEXT, b"seventy-two\0")),
    "width as text": exif(TURNED, (IMAGE_WIDTH, TEXT, b"twenty pixels\0")),
    "resolution of 0 / 0": exif(TURNED, (X_RESOLUTION, RATIONAL, struct.pack("<II", 0, 0))),
    "resolution that is NaN": exif(TURNED, (X_RESOLUTION, FLOAT, struct.pack("<f", float("nan")))),
    "orientation as text": exif((ORIENTATION, TEXT, b"6\0")),
    "orientation as longer text": exif((ORIENTATION, TEXT, b"right-top\0")),
    "orientation 99": exif((ORIENTATION, SHORT, struct.pack("<H", 99))),
    "orientation 0": exif((ORIENTATION, SHORT, struct.pack("<H", 0))),
    "two orientations": exif((ORIENTATION, SHORT, struct.pack("<HH", 6, 3))),
    "orientation as a fraction": exif((ORIENTATION, RATIONAL, struct.pack("<II", 0, 0))),
    "orientation that is NaN": exif((ORIENTATION, FLOAT, struct.pack("<f", float("nan")))),
    "more entries than there are": exif(declared=99),
    "cut short": exif(TURNED, (X_RESOLUTION, RATIONAL, bytes(8)))[:20],
    "only its name": b"Exif\0\0",
    "no TIFF": b"Exif\0\0nonsense of any kind",
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning", "ignore:Truncated File Read", "ignore:Metadata Warning")
def test_broken_exif_may_turn_an_image_and_never_refuses_it(name: str, kind: str, tmp_path: Path) -> None:
    plain, file = io.BytesIO(), tmp_path / "cat" / "odd"
    file.parent.mkdir()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(COLORS).save(plain, kind, **options)
    Image.fromarray(COLORS).save(file, kind, exif=BROKEN[name], **options)
    expected = np.asarray(Image.open(plain))
    found = np.asarray(read_image(file.read_bytes(), PrepareImage()))
    turned = name.startswith(("resolution", "width", "two"))
    assert np.array_equal(found, np.rot90(expected, -1) if turned else expected)


def test_the_audit_reads_broken_exif(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 10, "dog": 10})
    for number, name in enumerate(BROKEN):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "cat" / f"odd{number}.jpg", exif=BROKEN[name])
    found = audit(tmp_path, num_workers=0, progress=False)
    assert found.unreadable == ()
    assert found.splits[tmp_path.name].num_turned == 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once_with_draft_too(orientation: int, tmp_path: Path) -> None:
    plain = Image.fromarray(COLORS)
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    expected = io.BytesIO()
    plain.save(expected, "PNG", exif=tags)
    upright = np.asarray(read_image(expected.getvalue(), PrepareImage()))
    assert upright.shape == ((12, 20, 3) if orientation < 5 else (20, 12, 3))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        plain.save(tmp_path / name / "a.tiff", exif=tags)
    assert np.array_equal(read_image((tmp_path / "cat" / "a.tiff").read_bytes(), PrepareImage()), upright)
    options: dict[str, Any] = {"auto_augment": None, "hflip": 0.0, "scale": (1.0, 1.0), "color_jitter": None}
    options |= {"ratio": (0.01, 100.0), "interpolation": "bilinear"}
    height, width = upright.shape[0] // 2, upright.shape[1]
    transform = create_training_transform(input_size=(height, width), mean=(0.0,) * 3, std=(1.0,) * 3, **options)
    crop = take_crop(transform, PrepareImage())
    shapes = []

    def upper_half(image: Any, *_: Any) -> tuple[int, int, int, int]:
        shapes.append(tuple(image.shape))
        return 0, 0, height, width

    crop.crop.get_params = upper_half
    drafted = read_image((tmp_path / "cat" / "a.tiff").read_bytes(), crop)
    assert np.array_equal(drafted, upright[:height])
    assert shapes == [upright.shape[:2]]  # which the crop is drawn from


# Size


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


RESIZES: dict[str, Callable[[], Any]] = {
    "timm's evaluation": lambda: create_transform(224),
    "timm's border": lambda: create_transform(224, crop_mode="border"),
    "short side": lambda: Compose([Resize(256)]),
    "the same of version 2": lambda: v2.Compose([v2.Resize([256])]),
    "keep ratio": lambda: Compose([ResizeKeepRatio(224, longest=0.0)]),
    "alone": lambda: Resize(224),
}


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (3, 20000)])
def test_an_image_that_a_resize_would_explode_is_refused(name: str, size: tuple[int, int]) -> None:
    words = ("side of no pixels", "is resized to") if "border" in name else ("134,217,727 pixels", "is resized to")
    if size != (3, 20000) or "border" in name:
        with refused(OSError, *words):
            read_image(png(*size), PrepareImage(), RESIZES[name]())
    assert read_image(png(400, 20), PrepareImage(), RESIZES[name]()).size == (400, 20)  # a panorama


def test_the_bound_on_the_resized_size_is_that_of_the_decoded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * 100 * 100)  # 30,000 pixels in all
    check_resized((10, 30), Resize(100))  # 100 x 300
    with refused(OSError, "at most 30,000 pixels", "got 10 x 31", "resized to 100 x 310", "MAX_IMAGE_PIXELS"):
        check_resized((10, 31), Resize(100))
    check_resized((1, 10**9), Resize((100, 100)))
    check_resized((1, 10**9), create_transform(224, is_training=True))  # a crop comes first
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert max_pixels() == float("inf")
    check_resized((1, 10**9), Resize(100))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_a_decoded_image_has_a_bound_and_pillows_warning_is_no_error(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoded(width: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (width, 10)).save(file, kind)
        return file.getvalue()

    files = {width: encoded(width) for width in (100, 149, 151, 199, 500)}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for width in (100, 149):  # Pillow warns of the second, and warnings are errors here
        assert read_image(files[width], PrepareImage()).size == (width, 10)
        assert read_image(io.BytesIO(files[width]), PrepareImage()).size == (width, 10)
    for width in (151, 199, 500):  # Pillow refuses the last
        with refused(OSError, "at most 1,500 pixels was expected", "got", "MAX_IMAGE_PIXELS"):
            read_image(files[width], PrepareImage())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(files[149], PrepareImage())
    assert {each.category for each in caught} == {Image.DecompressionBombWarning}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert read_image(files[500], PrepareImage()).size == (500, 10)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with refused(OSError, "no pixels", f"{size[0]} x {size[1]}"):
        read_image(Image.new("RGB", size), PrepareImage())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # of a random crop
def test_the_others_are_trained_evaluated_predicted_and_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / split, {"cat": 12, "dog": 12})
        (tmp_path / split / "cat" / "000.png").write_bytes(png(1, 60000))
        (tmp_path / split / "cat" / "001.png").write_bytes(png(300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)  # 90,000 in all, which 300 x 300 meets
    (tmp_path / "train" / "cat" / "002.png").write_bytes(png(300, 301))
    train_set, val_set = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=tmp_path, auto_augment=None, on_error="skip")
    images = [train_set[number][0].shape for number in range(24)]
    assert images == [(3, 8, 8)] * 24
    assert train_set.unreadable == [2]  # a random crop of 1 x 60,000 is small
    cached, _ = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=tmp_path, auto_augment=None, cache="memory")
    assert cached.reader.num_bytes == 3 * (60_000 + 300 * 300 + 21 * 16 * 16)  # none for what is refused
    assert "at most 90,000 pixels" in cached.why_unreadable(2)
    assert [number for number in range(24) if val_set[number] is None] == [0]
    assert "is resized to" in val_set.why_unreadable(0)
    found = brightness().predict(tmp_path / "train", progress=False)
    errors = {Path(each.path or "").name: each.error for each in found if each.error}
    assert sorted(errors) == ["000.png", "002.png"]
    assert len(found) == 24
    report = audit(tmp_path, num_workers=0, progress=False)
    assert [Path(each.path).name for each in report.unreadable] == ["002.png"]
    assert "at most 90,000 pixels" in report.unreadable[0].error

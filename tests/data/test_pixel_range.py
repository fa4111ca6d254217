"""Images of more than 8 bits have one scale in the whole dataset, in training, evaluation, prediction and export."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import refused
from timm import create_model

from timm_accel import create_classifier, create_datasets, load_classifier
from timm_accel.data import ImageFolderDataset
from timm_accel.data.transforms.pixel_range import check_pixel_range, settled_pixel_range
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image
from timm_accel.export import export
from timm_accel.model_soup import average_weights
from timm_accel.models import save_classifier
from timm_accel.predict.opening import classifier_of

DTYPES = {"F": np.float32, "I": np.int32, "I;16": np.uint16}


def write_set(root: Path, mode: str, tops: list[float], low: float = 0.0) -> Path:
    """Write ``train`` and ``val`` of two classes; the images of one mode rise from `low` to each of the values."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number, top in enumerate(tops):
                pixels = np.linspace(low, top, 64).reshape(8, 8).astype(DTYPES[mode])
                Image.fromarray(pixels).save(root / split / name / f"{number}.png", "TIFF")
    return root


def read(root: Path, **options: Any) -> Any:
    return create_datasets(8, (0.5,), (0.5,), root / "train", root / "val", **({"auto_augment": None} | options))


def largest(dataset: Any, count: int) -> list[int]:
    """The largest prepared pixel of the first images."""
    return [int(np.asarray(dataset._read(number)[0]).max()) for number in range(count)]


def tiff_of_12_bits() -> bytes:
    """A TIFF of two pixels, 4095 and 2048, packed into three bytes."""
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 3, 1), (279, 4, 3)]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0" + struct.pack("<H", 8) + packed + bytes(4)


@pytest.mark.parametrize(
    ("mode", "tops", "agreed", "expected"),
    [
        ("F", [0.5, 1.0], (0, 1), [128, 255]),
        ("F", [0.0, 0.1], (0, 1), [0, 26]),
        ("F", [40.0, 204.0], (0, 255), [40, 204]),
        ("I", [51, 255], (0, 255), [51, 255]),
        ("I", [257 * 51, 65535], (0, 65535), [51, 255]),
        ("I;16", [257 * 51, 65535], None, [51, 255]),
    ],
)
def test_all_images_have_the_scale_that_they_agree_on(
    mode: str, tops: list[float], agreed: Any, expected: list[int], tmp_path: Path
) -> None:
    train_set, val_set = read(write_set(tmp_path, mode, tops))
    assert val_set.data_config["pixel_range"] == agreed
    assert largest(train_set, 2) == largest(val_set, 2) == expected
    assert largest(ImageFolderDataset(tmp_path / "train"), 2) == expected
    assert largest(read(tmp_path, cache="memory")[0], 2) == expected


@pytest.mark.parametrize(
    ("mode", "tops", "low", "proposal"),
    [
        ("F", [1.0, 200.0], 0.0, "(0, 200)"),  # one from 0 to 1, one from 0 to 255
        ("F", [300.0], 0.0, "(0, 300)"),
        ("F", [1.0], -1.0, "(-1, 1)"),
        ("F", [5.0, 7.5], 0.0, "(0, 7.5)"),  # a small part of 0 to 255
        ("I", [4000, 3000], 0.0, "(0, 4095)"),
        ("I", [70000], 0.0, "(0, 131071)"),
        ("I", [3000], -1000, "(-1000, 3000)"),
    ],
)
def test_images_that_do_not_agree_are_refused_with_a_proposal(
    mode: str, tops: list[float], low: float, proposal: str, tmp_path: Path
) -> None:
    write_set(tmp_path, mode, tops, low)
    with refused(ValueError, "Expected pixel_range", "one scale", "got None", ".png'", f"pixel_range={proposal}"):
        read(tmp_path)
    with refused(ValueError, "Expected pixel_range", f"pixel_range={proposal}"):
        ImageFolderDataset(tmp_path / "train")
    low, high = json.loads(f"[{proposal[1:-1]}]")
    train_set, _ = read(tmp_path, pixel_range=(low, high))
    assert largest(train_set, 1) == [round(255 * (tops[0] - low) / (high - low))]


def test_12_and_10_bits_are_scaled_by_the_given_range_and_clipped_at_its_ends(tmp_path: Path) -> None:
    write_set(tmp_path, "I;16", [4095, 2048, 5000], low=10)
    for dataset in read(tmp_path, pixel_range=(0, 4095)):
        assert largest(dataset, 3) == [255, 128, 255]
    dataset = ImageFolderDataset(tmp_path / "train", pixel_range=(0, 1023))
    assert largest(dataset, 2) == [255, 255]
    assert largest(ImageFolderDataset(tmp_path / "train"), 2) == [16, 8]


def test_a_file_that_tells_12_bits_has_their_range() -> None:
    pixels = np.asarray(read_image(tiff_of_12_bits(), PrepareImage(1)))
    assert pixels.tolist() == [[255, 128]]


def test_a_16_bit_pgm_has_the_range_of_16_bits() -> None:
    data = b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257 * 40)
    assert Image.open(io.BytesIO(data)).mode == "I"  # as of 32 bits
    assert np.asarray(read_image(data, PrepareImage(1))).tolist() == [[255, 40]]


def test_floats_from_0_to_1_leave_16_bits_as_they_are(tmp_path: Path) -> None:
    write_set(tmp_path, "F", [1.0])
    Image.fromarray(np.full((8, 8), 257 * 40, np.uint16)).save(tmp_path / "train" / "cat" / "1.png")
    assert largest(read(tmp_path)[0], 2) == [255, 40]
    write_set(tmp_path, "F", [200.0])
    with refused(ValueError, "Expected pixel_range", "(0, 200)"):  # would make 16 bits white
        read(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_make_an_image_unreadable(value: float, tmp_path: Path) -> None:
    write_set(tmp_path, "F", [1.0, 1.0])
    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[3, 3] = value
    Image.fromarray(pixels).save(tmp_path / "train" / "cat" / "0.png", "TIFF")
    train_set, _ = read(tmp_path)
    assert train_set.why_unreadable(0) == "pixels that are NaN or infinite: replace them"
    assert largest(ImageFolderDataset(tmp_path / "val"), 1) == [255]


def test_32_bits_outside_the_sample_are_unreadable_and_named(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 9, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tiff")
    with refused(OSError, "32-bit pixels from 0 to 9 have no scale", "pass pixel_range=(low, high)"):
        read_image(Image.open(tmp_path / "float.tiff"), PrepareImage())


def test_the_sample_is_spread_over_the_dataset_and_closes_its_files() -> None:
    opened = []

    class Many:
        def __len__(self) -> int:
            return 5000

        def __getitem__(self, index: int) -> Any:
            file = io.BytesIO()
            Image.fromarray(np.full((2, 2), index / 5000, np.float32)).save(file, "TIFF")
            opened.append((index, file))
            return file, 0

        def filename(self, index: int, absolute: bool) -> str:
            return str(index)

    assert settled_pixel_range([Many()]) == (0, 1)
    numbers = [index for index, _ in opened]
    assert len(numbers) == 1 + 1000  # the first header told that all are to be measured
    assert (numbers[1], numbers[-1]) == (0, 4999)
    assert sum(file.closed for _, file in opened) >= 1000


@pytest.mark.parametrize("bad", [(1, 1), (5, 2), (0,), (0, 1, 2), "ab", 7, (0, float("nan")), (0, float("inf"))])
def test_other_ranges_are_refused(bad: Any, tmp_path: Path) -> None:
    with refused(ValueError, "Expected pixel_range to be two rising numbers", f"got {bad!r}", "(0, 4095)"):
        check_pixel_range(bad)
    with refused(ValueError, "Expected pixel_range"):
        PrepareImage(pixel_range=bad)


def test_a_range_beside_prepare_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, "I;16", [4095])
    with refused(ValueError, "Expected pixel_range or prepare", "got both"):
        ImageFolderDataset(tmp_path / "train", prepare=PrepareImage(), pixel_range=(0, 4095))


def test_a_saved_model_carries_the_range_to_predictions_exports_and_soups(tmp_path: Path) -> None:
    _, val_set = read(write_set(tmp_path / "data", "I;16", [4095]), pixel_range=(0, 4095))
    model, _ = create_classifier("test_resnet", 2, image_size=32)
    data_config = val_set.data_config | {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_classifier(model, tmp_path / "best", ["cat", "dog"], data_config)
    create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)  # timm refuses keys that it does not know
    classifier = load_classifier(tmp_path / "best")
    assert classifier.prepare.pixel_range == (0, 4095)
    half = tmp_path / "half.png"
    Image.fromarray(np.full((32, 32), 2048, np.uint16)).save(half)
    expected = classifier.predict(Image.new("RGB", (32, 32), (128, 128, 128)), progress=False)[0].scores
    assert classifier.predict(half, progress=False)[0].scores == pytest.approx(expected)
    for name in ("model.onnx", "model.pt", "model.pt2"):
        export(tmp_path / "best", tmp_path / name)
        opened = load_classifier(tmp_path / name)
        assert opened.prepare.pixel_range == (0, 4095)
        assert opened.predict(half, progress=False)[0].scores == pytest.approx(expected, abs=1e-5)
    opened = classifier_of(model)
    assert opened.prepare.pixel_range is None
    assert "pixel_range" not in opened.transform_of_views(()).__dict__
    model.pretrained_cfg["pixel_range"] = (0, 1023)
    assert classifier_of(model).prepare.pixel_range == (0, 1023)
    save_classifier(model, tmp_path / "other", ["cat", "dog"])
    assert load_classifier(tmp_path / "other").prepare.pixel_range == (0, 1023)
    with refused(ValueError, "pixel_range"):
        average_weights([tmp_path / "best", tmp_path / "other"], out=tmp_path / "soup")


def test_a_dataset_of_8_bits_has_no_range(image_folder: Path) -> None:
    _, val_set = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=image_folder)
    assert val_set.data_config["pixel_range"] is None
    before = torch.get_rng_state()
    create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=image_folder)
    assert torch.equal(before, torch.get_rng_state())

"""The mean, the std and the crop of a data config are checked wherever they enter."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import write_images
from PIL import Image
from refusal import refused

from timm_accel import create_datasets, load_classifier
from timm_accel.audit import audit
from timm_accel.data.streams.stream_reader import read_class_map
from timm_accel.data.transforms.data_config import check_crop, check_mean_and_std
from timm_accel.data.transforms.device_transform import DeviceTransform
from timm_accel.export import export_torchscript
from timm_accel.models import save_classifier

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
BAD = {
    "0 to 255": ("mean", (124, 116, 104)),
    "below 0": ("mean", (-0.1, 0.5, 0.5)),
    "just above 1": ("mean", (0.5, 0.5, 1.001)),
    "NaN": ("mean", (0.5, math.nan, 0.5)),
    "text": ("mean", ("a", "b", "c")),
    "None": ("mean", None),
    "one number": ("mean", 0.5),
    "none": ("mean", ()),
    "zeros": ("std", (0, 0, 0)),
    "one zero": ("std", (0.2, 0.0, 0.2)),
    "negative": ("std", (0.2, 0.2, -0.2)),
    "std 0 to 255": ("std", (58, 57, 57)),
    "infinite": ("std", (0.2, math.inf, 0.2)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "data", {"cat": 3, "dog": 3})
    return tmp_path / "data"


@pytest.mark.parametrize("kind", BAD)
def test_a_mean_or_std_out_of_range_is_refused_by_datasets_and_transforms(kind: str, folder: Path) -> None:
    name, values = BAD[kind]
    given = {"mean": MEAN, "std": STD} | {name: values}
    words = (f"Expected {name} to have a number", "to 1 for each channel", f"got {values!r}", "by 255")
    with refused(ValueError, *words):
        create_datasets(16, given["mean"], given["std"], data=folder)
    with refused(ValueError, *words):
        DeviceTransform(given["mean"], given["std"])


@pytest.mark.parametrize("kind", ["0 to 255", "NaN", "zeros", "negative", "text"])
def test_an_audit_refuses_them(kind: str, folder: Path) -> None:
    name, values = BAD[kind]
    with refused(ValueError, f"Expected {name} of model_config to have a number"):
        audit(folder, num_workers=0, progress=False, model_config={"mean": MEAN, "std": STD} | {name: values})


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("mean", [124, 116, 104], "Expected mean in {!r} to have a number from 0 to 1"),
        ("std", [0, 0, 0], "Expected std in {!r} to have a number above 0 to 1"),
        ("std", [0.2, -0.2, 0.2], "Expected std in {!r} to have a number above 0 to 1"),
        ("crop_pct", -1, "Expected crop_pct in {!r} to be a share from 0.1 to 2, but got -1"),
        ("crop_pct", 87.5, "Expected crop_pct in {!r} to be a share from 0.1 to 2, but got 87.5"),
        (
            "crop_mode",
            "centr",
            "Expected crop_mode in {!r} to be one of timm's, but got 'centr'. Did you mean",
        ),
        ("interpolation", "cubic", "Expected interpolation in {!r} to be one of timm's, but got 'cubic'. Did you mean"),
    ],
)
def test_saved_weights_with_such_a_config_are_refused(entry: str, value: Any, words: str, tmp_path: Path) -> None:
    save_classifier(timm.create_model("test_resnet", num_classes=3), tmp_path, ["cat", "dog", "owl"])
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"][entry] = value
    del config["integrity"]  # changed on purpose
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused(ValueError, words.format(str(tmp_path / "config.json"))):
        load_classifier(tmp_path)


def test_an_export_refuses_a_std_of_0(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    model.pretrained_cfg["std"] = (0.2, 0.0, 0.2)
    with refused(ValueError, "Expected std of the data config to have a number above 0"):
        export_torchscript(model, tmp_path / "model.pt")


@pytest.mark.parametrize("crop_pct", [0, 0.0, -0.5, 87.5, 1e-9, math.nan, math.inf, "0.9", True])
def test_a_crop_out_of_range_is_refused(crop_pct: Any, folder: Path) -> None:
    with refused(ValueError, "Expected crop_pct to be a share from 0.1 to 2", f"got {crop_pct!r}"):
        create_datasets(16, MEAN, STD, data=folder, crop_pct=crop_pct)


@pytest.mark.parametrize(("crop_pct", "found"), [(None, 0.875), (1, 1), (1.0, 1.0), (0.5, 0.5), (1.15, 1.15)])
def test_a_crop_in_range_is_stored(crop_pct: Any, found: float, folder: Path) -> None:
    assert create_datasets(16, MEAN, STD, data=folder, crop_pct=crop_pct)[1].data_config["crop_pct"] == found


def test_unknown_crop_modes_and_interpolations_are_refused(folder: Path) -> None:
    with refused(ValueError, "Expected crop_mode to be one of timm's, but got 'centr'. Did you mean 'center'?"):
        create_datasets(16, MEAN, STD, data=folder, crop_mode="centr")
    with refused(ValueError, "Expected interpolation to be one of timm's, but got 'linear'"):
        create_datasets(16, MEAN, STD, data=folder, eval_interpolation="linear")


def test_every_config_of_timm_passes() -> None:
    configs = [timm.get_pretrained_cfg(name) for name in timm.list_models(pretrained=True)]
    assert len(configs) > 1000
    for config in filter(None, configs):
        check_mean_and_std(config.mean, config.std)
        check_crop(config.crop_pct, config.crop_mode, config.interpolation)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_arrays_and_tensors_are_numbers_too(kind: Any) -> None:
    mean, std = check_mean_and_std(kind([0.0, 0.5, 1.0]), kind([0.25, 0.5, 1.0]))
    assert (mean, std) == ((0.0, 0.5, 1.0), (0.25, 0.5, 1.0))


def test_lengths_must_agree(folder: Path) -> None:
    with refused(ValueError, "mean and std to be of the same length", "(0.5, 0.4, 0.3) and (0.2, 0.2)"):
        create_datasets(16, MEAN, (0.2, 0.2), data=folder)


def manifest(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    (folder / "set.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    return folder / "set.csv"


def test_a_manifest_is_audited_by_its_splits(folder: Path) -> None:
    Image.open(folder / "cat" / "000.png").save(folder / "dog" / "copy.png")
    rows = [(f"{name}/00{n}.png", name, "train" if n else "VALID") for name in ("cat", "dog") for n in range(3)]
    found = audit(str(manifest(folder, [("path", "label", "split"), *rows, ("dog/copy.png", "dog", "training")])),
                  num_workers=0, progress=False)  # fmt: skip
    assert {name: split.class_sizes for name, split in found.splits.items()} == {
        "train": {"cat": 2, "dog": 3},
        "val": {"cat": 1, "dog": 1},
    }
    assert list(found.splits) == ["train", "val"]
    assert [{Path(image.path).name for image in group} for group in found.duplicates] == [{"000.png", "copy.png"}]


def test_a_manifest_without_splits_is_audited_whole(folder: Path) -> None:
    rows = [(f"{name}/00{n}.png", name) for name in ("cat", "dog") for n in range(3)]
    found = audit(manifest(folder, [("path", "label"), *rows]), num_workers=0, progress=False)
    assert {name: split.class_sizes for name, split in found.splits.items()} == {"set": {"cat": 3, "dog": 3}}


def test_a_tar_is_audited(folder: Path, tmp_path: Path) -> None:
    import tarfile

    write_images(tmp_path / "split" / "train", {"cat": 2, "dog": 3})
    write_images(tmp_path / "split" / "val", {"cat": 1, "dog": 1})
    for name, source in (("flat", folder), ("split", tmp_path / "split")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for path in sorted(source.rglob("*.png")):
                tar.add(path, str(path.relative_to(source)))
    found = audit(tmp_path / "flat.tar", num_workers=0, progress=False)
    assert {name: split.num_files for name, split in found.splits.items()} == {"flat": 6}
    found = audit(tmp_path / "split.tar", num_workers=0, progress=False)
    assert {name: split.num_files for name, split in found.splits.items()} == {"train": 5, "val": 2}


@pytest.mark.parametrize("name", ["set.csv", "set.parquet", "set.tar", "set.txt"])
def test_an_empty_file_has_nothing_to_audit(name: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).touch()
    with refused(ValueError, "Expected ", name):
        audit(tmp_path / name, num_workers=0, progress=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("name the classes", "without any")),
        (b"\n\n", ("name the classes", "without any")),
        (b"cat\n\ndog\n", ("no empty line",)),
        (b"cat\ndog\ncat\n", ("each name once",)),
        (b"\xff\xfe", ("UTF-8",)),
    ],
)
def test_a_class_map_without_classes_is_refused(content: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with refused(ValueError, "Expected class_map to ", *words):
        read_class_map(tmp_path / "names.txt")
    with refused(FileNotFoundError, "Expected class_map to be a file", "nope.txt"):
        read_class_map(tmp_path / "nope.txt")
    with refused(ValueError, "name the classes", "{}"):
        read_class_map({})


def test_a_class_map_numbers_its_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\n 狗 \r\n\r\n".encode())
    assert read_class_map(tmp_path / "names.txt") == {"cat": 0, "狗": 1}

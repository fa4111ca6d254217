"""Saved weights and their config are opened as they were saved, or one sentence tells what changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusal import refused

from timm_accel import create_classifier, model_soup
from timm_accel.models import open_classifier, save_classifier, signed_config, weights_of_run
from timm_accel.models.sources import read_source


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    folder = tmp_path_factory.mktemp("run") / "best"
    save_classifier(model, folder, ["cat", "dog", "owl"], best={"metric": "accuracy", "value": 0.5, "epoch": 1})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "best")
    return tmp_path / "best"


def edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_timm_opens_what_was_saved(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    ours, config = open_classifier(folder)
    assert torch.equal(model.fc.weight, ours.fc.weight)
    weights = folder / "model.safetensors"
    assert config["integrity"]["size"] == weights.stat().st_size


@pytest.mark.parametrize("opened", [open_classifier, read_source])
def test_changed_weights_are_named(opened: Any, folder: Path) -> None:
    flip(folder / "model.safetensors")
    with refused(ValueError, "model.safetensors to be", str(folder), "has changed since", "remove 'integrity' from"):
        opened(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with refused(ValueError, "model.safetensors to be complete", "of 5 bytes instead of"):
        opened(folder)


@pytest.mark.parametrize(
    "fields",
    [{"label_names": ["a", "b", "c"]}, {"integrity": 1}, {"integrity": {}}, {"integrity": None}, {"num_classes": 4}],
    ids=str,
)
def test_an_edited_config_is_named_with_what_to_do(fields: dict[str, Any], folder: Path) -> None:
    edit(folder, **fields)
    for opened in (open_classifier, read_source):
        with refused(ValueError, "config.json to be", str(folder), "changed since", "remove 'integrity' from it"):
            opened(folder)
    with refused(ValueError, "config.json to be as it was saved", "changed since"):
        weights_of_run(folder.parent)


def test_an_edit_on_purpose_is_opened_without_the_digest(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["integrity"]
    (folder / "config.json").write_text(json.dumps(config | {"label_names": ["a", "b", "c"]}))
    flip(folder / "model.safetensors")  # of others: nothing is known about them
    assert open_classifier(folder)[1]["label_names"] == ["a", "b", "c"]
    (folder / "config.json").write_text(json.dumps(signed_config(folder, config)))
    open_classifier(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 100_000], ids=lambda each: str(each[:4])
)
def test_a_config_that_is_no_object_is_named(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    for opened in (open_classifier, read_source):
        with refused(ValueError, "config.json to ", str(folder / "config.json"), "Copy or save it again"):
            opened(folder)


@pytest.mark.parametrize("value", [None, "0.9", [0.9], {}, float("nan")])
def test_a_best_value_of_another_kind_does_not_break_the_choice_of_weights(value: Any, folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("best_ema"))
    for name, best in (("best", value), ("best_ema", 0.4)):
        config = json.loads((folder.with_name(name) / "config.json").read_text())
        config["best"] = {"metric": "accuracy", "value": best, "epoch": 1}
        signed = signed_config(folder.with_name(name), config)
        (folder.with_name(name) / "config.json").write_text(json.dumps(signed))
    assert weights_of_run(folder.parent) == folder


def test_a_soup_is_signed_as_its_own(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("second"))
    out = model_soup.average_weights([folder, folder.with_name("second")], out=folder.with_name("soup"))
    open_classifier(out)

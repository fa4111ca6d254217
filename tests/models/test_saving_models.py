"""The folders that weights are saved in."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from timm_accel.models import create_classifier, save_classifier


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_saved_classifier_is_the_same_with_timm_alone(name: str, tmp_path: Path) -> None:
    model, config = create_classifier(name, 4, image_size=(64, 32), in_chans=1, drop_rate=0.5)
    save_classifier(model, tmp_path / "best", ["a", "b", "c", "d"], note="mine")
    alone = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True).eval()
    images = torch.randn(2, 1, 64, 32)
    assert torch.equal(alone(images), model.eval()(images))
    resolved = timm.data.resolve_model_data_config(alone)
    for key, value in config.items():
        assert resolved[key] == value or tuple(resolved[key]) == value, key  # JSON has no tuples
    saved = json.loads((tmp_path / "best" / "config.json").read_text())
    assert (saved["label_names"], saved["note"]) == (["a", "b", "c", "d"], "mine")


def test_a_model_in_channels_last_is_saved_too(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    model = model.to(memory_format=torch.channels_last).eval()
    save_classifier(model, tmp_path)
    alone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(alone(images), model(images), atol=1e-5)
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert "note" not in json.loads((tmp_path / "config.json").read_text())


def test_a_model_with_a_head_of_its_own_says_that_timm_cannot_rebuild_it(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    model.fc = nn.Sequential(nn.Linear(96, 8), nn.Linear(8, 3))
    save_classifier(model, tmp_path)
    assert "parts of it were replaced" in json.loads((tmp_path / "config.json").read_text())["note"]


def test_an_interrupted_write_leaves_the_old_files_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_classifier(nn.Linear(2, 2), tmp_path, value=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save_classifier(nn.Linear(2, 2), tmp_path, value=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

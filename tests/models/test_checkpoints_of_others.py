"""Checkpoints as other programs save them are loaded exactly, or refused in one sentence; so are empty files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusal import refused
from torch import Tensor

from timm_accel import create_classifier, load_classifier
from timm_accel.models import open_classifier, save_classifier

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=3).state_dict()


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
CHECKPOINTS: dict[str, Callable[[Tensors], Any]] = {
    "none": lambda t: t,
    "torch's tutorials": lambda t: {"model_state_dict": t, "optimizer_state_dict": OPTIMIZER, "epoch": 3, "loss": 0.1},
    "with a random state": lambda t: {"model_state_dict": t, "rng_state": torch.get_rng_state()},
    "with an EMA of torch's name": lambda t: {"model_state_dict": t, "ema_state_dict": prefixed("x.", t)},
    "state_dict": lambda t: {"state_dict": t, "optimizer": OPTIMIZER},
    "model": lambda t: {"model": t, "scaler": {"scale": torch.ones(())}},
    "net": lambda t: {"net": t, "acc": 0.9},
    "params": lambda t: {"params": t},
    "DDP": lambda t: prefixed("module.", t),
    "compiled": lambda t: prefixed("_orig_mod.", t),
    "compiled DDP": lambda t: prefixed("module._orig_mod.", t),
    "nested DDP": lambda t: {"model_state_dict": prefixed("module.", t)},
    "Lightning": lambda t: {"state_dict": prefixed("model.", t), "pytorch-lightning_version": "2.4"},
    "compiled Lightning": lambda t: {"state_dict": prefixed("model._orig_mod.", t)},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_is_loaded_exactly(kind: str, tensors: Tensors, tmp_path: Path) -> None:
    torch.save(CHECKPOINTS[kind](tensors), tmp_path / "w.pth")
    model, _ = create_classifier("test_resnet", 3, weights=tmp_path / "w.pth")
    assert model.weights_report.exact
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: {"net_g": t, "net_d": t}, ("one state dict", "w.pth", "'net_g', 'net_d'", "Save that of the model")),
        (lambda t: {"optimizer": OPTIMIZER, "epoch": 3}, ("tensors by name", "w.pth", "without any")),
        (lambda t: {}, ("tensors by name", "without any")),
        (lambda t: t["fc.weight"], ("tensors", "w.pth", "Save a state dict")),
        (lambda t: [t], ("tensors", "w.pth", "Save a state dict")),
        (lambda t: None, ("tensors", "w.pth", "Save a state dict")),
    ],
)
def test_what_is_not_one_state_dict_is_refused(
    make: Callable[[Tensors], Any], words: tuple[str, ...], tensors: Tensors, tmp_path: Path
) -> None:
    torch.save(make(tensors), tmp_path / "w.pth")
    with refused(ValueError, "Expected weights to ", *words):
        create_classifier("test_resnet", 3, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "tar", "safetensors"])
def test_empty_and_broken_files_of_weights_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    path.touch()
    with refused(ValueError, "Expected weights to be a file with tensors", str(path), "is empty"):
        create_classifier("test_resnet", 3, weights=path)
    path.write_bytes(b"\xffno weights")
    with refused(ValueError, "Expected weights to be tensors", str(path), "Error: ", "Save a state dict"):
        create_classifier("test_resnet", 3, weights=path)


def saved(tensors: Tensors, folder: Path) -> Path:
    model = timm.create_model("test_resnet", num_classes=3)
    model.load_state_dict(tensors)
    save_classifier(model, folder, ["cat", "dog", "owl"])
    return folder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"config"', b"\xff\xfe"])
def test_a_broken_config_is_refused_by_every_reader(content: bytes, tensors: Tensors, tmp_path: Path) -> None:
    folder = saved(tensors, tmp_path / "best")
    (folder / "config.json").write_bytes(content)
    readers: list[Callable[[Any], Any]] = [
        open_classifier,
        load_classifier,
        lambda path: load_classifier(path.parent),
        lambda path: create_classifier("test_resnet", 3, weights=path),
    ]
    for read in readers:
        with refused(ValueError, "Expected config.json to ", str(folder / "config.json"), "Copy or save it again"):
            read(folder)


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_saved_weights_that_are_cut_off_are_refused(size: int, tensors: Tensors, tmp_path: Path) -> None:
    weights = saved(tensors, tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with refused(ValueError, "Expected model.safetensors to be complete", str(weights), f"of {size} bytes"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
def test_a_file_of_weights_is_no_classifier(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"w.{suffix}").touch()
    with refused(ValueError, "class names and a data config", f"w.{suffix}", "create_classifier(…, weights=…)"):
        load_classifier(tmp_path / f"w.{suffix}")

"""Small models, and the four ways to export them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from torch import Tensor, nn

from timm_accel.export import Exported, export_onnx, export_program, export_torchscript
from timm_accel.export.formats import known_warnings_silenced

EXPORTERS: dict[str, tuple[Callable[..., Exported], str]] = {
    "onnx": (export_onnx, "model.onnx"),
    "pt2": (export_program, "model.pt2"),
    "script": (partial(export_torchscript, method="script"), "model.pt"),
    "trace": (partial(export_torchscript, method="trace"), "model.torchscript"),
}
CONFIG = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3), "crop_pct": 0.9}


def classifier(name: str = "test_resnet", **options: Any) -> nn.Module:
    """A timm model of 3 classes for 64 pixels, whose BatchNorm has seen data."""
    torch.manual_seed(3)
    return with_statistics(timm.create_model(name, num_classes=3, pretrained_cfg_overlay=dict(CONFIG), **options))


def with_statistics(model: nn.Module) -> nn.Module:
    """The model, whose BatchNorm is then as if it had seen data."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    return model


class Small(nn.Module):
    """A linear model of 3 classes for images of ``(3, 8, 8)``; `after` changes its logits."""

    def __init__(self, after: Callable[[Tensor], Any] | None = None, **config: Any) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)
        self.after = nn.Identity() if after is None else after
        self.pretrained_cfg = {**CONFIG, "input_size": (3, 8, 8), "architecture": "small", **config}

    def forward(self, images: Tensor) -> Any:
        return self.after(self.head(images.flatten(1)))


def run_file(path: Path, images: Tensor) -> Tensor:
    """What a file gives in its format's own runtime, without this package."""
    with known_warnings_silenced(), torch.no_grad():
        if path.suffix == ".onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            (output,) = session.run(None, {"images": np.asarray(images)})
            return torch.from_numpy(output)
        if path.suffix == ".pt2":
            return torch.export.load(path).module()(images)
        return torch.jit.load(path)(images)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """What a model gives in evaluation mode; its mode is then as before."""
    training = model.training
    logits = model.eval()(images)
    model.train(training)
    return logits

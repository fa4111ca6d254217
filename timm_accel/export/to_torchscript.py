"""TorchScript: one file that runs from Python and C++ without the model's source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from timm_accel.export.checking import TOLERANCE, Exported, write_checked
from timm_accel.export.formats import check_suffix
from timm_accel.export.metadata import EXTRA_FILE
from timm_accel.export.preparation import prepare
from timm_accel.messages import nearest

METHODS = ("script", "trace")


def export_torchscript(
    model: nn.Module,
    path: str | Path,
    *,
    method: str = "script",
    class_names: Sequence[str] | Any | None = None,
    normalize: bool = False,
    softmax: bool = False,
    temperature: float = 1.0,
    multi_label: bool = False,
    reparameterize: bool = True,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a model to TorchScript, and compare the file with it before it is put in its place.

    An evaluation copy on the CPU is exported; the model stays as it is. torch calls TorchScript deprecated since 2.11.

    Args:
        model: With timm's ``pretrained_cfg``.
        path: ``.pt`` or ``.torchscript``; replaced only by a file that passed.
        method: ``script`` compiles the source, ``trace`` records one batch and suits more models.
        class_names: The names in the order of the output, or a dataset that has them; None for the config's.
        normalize: Whether the file takes ``uint8`` images ``(B, C, H, W)`` and normalizes them itself.
        softmax: Whether its output are probabilities.
        temperature: What logits are divided by: in the file before a softmax, else by `load_classifier`.
        multi_label: Whether an image may have several labels, for `load_classifier`.
        reparameterize: Whether to fuse branches that timm can fuse.
        tolerance: The largest difference, as `checking.max_difference` has it.

    Raises:
        ExportError: The model does not export that way, or the file differs from it by more.
        OSError: Nothing can be written there.
        TypeError: The model is no module, or its output no tensor.
        ValueError: The method or suffix is unknown, the model has no data config, the class names do not fit, the
            temperature is not positive, or softmax goes with several labels.

    Source: ``torch.jit``.
    """
    check_suffix(path, "torchscript")
    if method not in METHODS:
        raise ValueError(f"Expected method to be one of {METHODS}, but got {method!r}. {nearest(method, METHODS)}")
    prepared = prepare(
        model,
        class_names=class_names,
        normalize=normalize,
        softmax=softmax,
        temperature=temperature,
        multi_label=multi_label,
        reparameterize=reparameterize,
    )

    def write(unfinished: Path) -> None:
        if method == "script":
            module = torch.jit.script(prepared.module)
        else:
            module = torch.jit.trace(prepared.module, prepared.images(2))  # one image may take a way of its own
        torch.jit.save(module, unfinished, _extra_files={EXTRA_FILE: prepared.metadata.to_json()})

    return write_checked(Path(path), prepared, write, method=method, tolerance=tolerance)

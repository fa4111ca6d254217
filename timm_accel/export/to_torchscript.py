"""Export to TorchScript, a file that runs from Python and C++ without the model's source."""

from collections.abc import Sequence
from io import BytesIO
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
    """Export a model to TorchScript, and compare the file with it before it is moved to `path`.

    An evaluation copy on the CPU is exported; the model does not change. TorchScript is deprecated since torch 2.11.

    Args:
        model: A model with timm's ``pretrained_cfg``.
        path: ``.pt`` or ``.torchscript``; it is replaced only by a file that passed the comparison.
        method: ``script`` compiles the source, ``trace`` records one batch and suits more models.
        class_names: The names in the order of the output, or a dataset that has them; None for the config's.
        normalize: Whether the file takes ``uint8`` images ``(B, C, H, W)`` and normalizes them itself.
        softmax: Whether the file returns probabilities.
        temperature: The divisor of the logits; the file applies it before a softmax, otherwise `load_classifier` does.
        multi_label: Whether the model is multi-label, for `load_classifier`.
        reparameterize: Whether to fuse branches that timm can fuse.
        tolerance: The largest accepted difference, as `checking.max_difference` computes it.

    Raises:
        ExportError: The model cannot be exported that way, the difference exceeds the tolerance, or the disk is full.
        OSError: Nothing can be written there.
        TypeError: The model is not a module, or its output is not a tensor.
        ValueError: The method or suffix is unknown, the model has no data config, the class names do not fit, the
            temperature is not positive, or `softmax` is set for multi-label.

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
            module = torch.jit.trace(prepared.module, prepared.images(2))  # a batch of 1 may take another branch
        content = BytesIO()  # torch 2.14 aborts the process where it writes to a full disk itself
        torch.jit.save(module, content, _extra_files={EXTRA_FILE: prepared.metadata.to_json()})
        unfinished.write_bytes(content.getvalue())

    return write_checked(Path(path), prepared, write, method=method, tolerance=tolerance)

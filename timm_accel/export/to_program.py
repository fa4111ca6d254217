"""Export to a ``.pt2`` file with ``torch.export``, the successor of TorchScript."""

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


def export_program(
    model: nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str] | Any | None = None,
    normalize: bool = False,
    softmax: bool = False,
    temperature: float = 1.0,
    multi_label: bool = False,
    reparameterize: bool = True,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a model with ``torch.export``, and compare the file with it before it is moved to `path`.

    An evaluation copy on the CPU is exported, with a batch dimension of any size; the model does not change.
    ``torch.export.load`` opens the file; torch guarantees this only for the same version.

    Args:
        model: A model with timm's ``pretrained_cfg``.
        path: ``.pt2``; it is replaced only by a file that passed the comparison.
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
        ValueError: The suffix is unknown, the model has no data config, the class names do not fit, the temperature is
            not positive, or `softmax` is set for multi-label.

    Source: ``torch.export``.
    """
    check_suffix(path, "pt2")
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
        batch = {0: torch.export.Dim.DYNAMIC}
        program = torch.export.export(prepared.module, (prepared.images(2),), dynamic_shapes=(batch,), strict=False)
        content = BytesIO()  # torch 2.14 aborts the process where it writes to a full disk itself
        torch.export.save(program, content, extra_files={EXTRA_FILE: prepared.metadata.to_json()})
        unfinished.write_bytes(content.getvalue())

    return write_checked(Path(path), prepared, write, method="export", tolerance=tolerance)

"""Write an exported file, and compare its outputs with the model's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from timm_accel.atomic import atomic_write, why_unwritable
from timm_accel.export.formats import format_of, known_warnings_silenced
from timm_accel.export.preparation import Prepared
from timm_accel.export.runtime import open_exported
from timm_accel.messages import root_cause
from timm_accel.models.finite import check_finite

BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """The model cannot be exported that way, the file's outputs differ, or the disk is full; the cause is chained."""


@dataclass(frozen=True)
class Exported:
    """An exported file, and how far its outputs differ from the model's.

    Args:
        path: The file.
        format: ``onnx``, ``torchscript`` or ``pt2``.
        method: ``dynamo`` or ``torchscript`` for ONNX, ``script`` or ``trace`` for TorchScript, ``export`` for ``pt2``.
        size: The size in bytes, including external weights.
        opset: The opset of ONNX; None for other formats.
        max_difference: The largest difference to the model, from the function `max_difference`.
        tolerance: The largest difference that was accepted.
    """

    path: Path
    format: str
    method: str
    size: int
    opset: int | None
    max_difference: float
    tolerance: float


def write_checked(
    path: Path,
    prepared: Prepared,
    write: Callable[[Path], None],
    *,
    method: str,
    tolerance: float,
    opset: int | None = None,
    other_sizes: Sequence[tuple[int, int]] = (),
) -> Exported:
    """Write a file, compare it with the model, and only then move it to `path`.

    Args:
        path: The file.
        prepared: The prepared model.
        write: A function that writes the file and checks its structure.
        method: The name of the method.
        tolerance: The largest accepted difference.
        opset: The opset of ONNX.
        other_sizes: Further sizes to compare at, (height, width), beside the model's.

    Raises:
        ExportError: The model cannot be exported that way, the difference exceeds the tolerance, or the disk is full.
        OSError: Nothing can be written there.
        ValueError: An output of the model is NaN or infinite.
    """
    with torch.inference_mode():
        check_finite(prepared.eager(prepared.images(2)), f"the model, {prepared.metadata.architecture},")
    name, file_format = prepared.metadata.architecture, format_of(path)
    unfinished = None
    try:
        with atomic_write(path) as unfinished:
            difference = _write(unfinished, prepared, write, method, other_sizes)
            if not difference <= tolerance:
                raise ExportError(
                    f"Expected {file_format} of {name} by {method} to differ from the model by at most "
                    f"{tolerance:.3g}, but got {difference:.3g}. Try another method or format, or raise tolerance."
                )
            size = sum(written.stat().st_size for written in unfinished.parent.iterdir())
    except OSError as error:
        if unfinished is None:
            raise  # nothing was begun
        raise ExportError(str(error)) from error
    return Exported(path, file_format, method, size, opset, difference, tolerance)


def _write(
    path: Path,
    prepared: Prepared,
    write: Callable[[Path], None],
    method: str,
    other_sizes: Sequence[tuple[int, int]],
) -> float:
    """Write a file, and return how far it differs from the model."""
    try:
        with known_warnings_silenced():
            write(path)
        return max_difference(prepared, path, other_sizes)
    except Exception as error:
        if why_unwritable(error, path.parent) is not None:
            raise  # `atomic_write` explains it
        raise ExportError(
            f"Expected {prepared.metadata.architecture} to export to {format_of(path)} by {method}, but got "
            f"{root_cause(error)}. Try another method or format, or reparameterize=False."
        ) from error


def max_difference(prepared: Prepared, path: Path, other_sizes: Sequence[tuple[int, int]] = ()) -> float:
    """Return the largest difference between an exported file and the model, on random images.

    Batches of 1, 2 and 5 are compared. The difference of a batch is the largest absolute difference, divided by the
    largest absolute output of the model, so that small outputs count as much as large ones. It is NaN if an output is.

    Args:
        prepared: The model.
        path: The file.
        other_sizes: Further sizes to compare at with a batch of 2, (height, width), beside the model's.
    """
    exported = open_exported(path)
    batches = [prepared.images(count) for count in BATCH_SIZES]
    batches += [prepared.images(2, *size) for size in other_sizes]
    differences = []
    for images in batches:
        with torch.inference_mode():
            expected = prepared.eager(images)
        scale = expected.abs().max().clamp(min=1e-12)
        differences.append((exported(images) - expected).abs().max() / scale)
    return float(torch.stack(differences).max())

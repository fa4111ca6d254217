"""Run exported files of any format; this module does not depend on the exporters."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from timm_accel.export.formats import check_installed, format_of, known_warnings_silenced
from timm_accel.export.metadata import Metadata, read_metadata


@dataclass(frozen=True)
class ExportedModel:
    """An open exported file; call it with images.

    Args:
        run: A function from images to outputs, on the CPU.
        metadata: The classes and the preprocessing.
    """

    run: Callable[[Tensor], Tensor]
    metadata: Metadata

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits or probabilities ``(B, num_classes)``.

        Args:
            images: ``(B, C, H, W)``, ``uint8`` if the file normalizes, otherwise normalized ``float32``.

        Raises:
            TypeError: The images have another dtype.
            ValueError: The images have another number of dimensions or channels.
        """
        dtype = torch.uint8 if self.metadata.includes_normalization else torch.float32
        if images.dtype != dtype:
            does = "normalizes itself" if self.metadata.includes_normalization else "takes normalized images"
            raise TypeError(
                f"Expected images to be {dtype}, since the file {does}, but got {images.dtype}. Convert them."
            )
        channels = self.metadata.input_size[0]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"Expected images to be of shape (B, {channels}, H, W), but got {tuple(images.shape)}. Stack them into "
                "a batch."
            )
        with torch.no_grad():
            return self.run(images)


def open_exported(path: str | Path) -> ExportedModel:
    """Open an exported file on the CPU.

    TorchScript and ``.pt2`` files can hold code, so open only what you trust.

    Args:
        path: ``.onnx`` (run by onnxruntime), ``.pt2``, ``.pt`` or ``.torchscript``.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: The file is ONNX, and the extra ``export`` is not installed.
        ValueError: The suffix is unknown, or timm_accel did not export it.
    """
    metadata = read_metadata(path)
    opener = {"onnx": _open_onnx, "pt2": _open_program, "torchscript": _open_torchscript}[format_of(path)]
    with known_warnings_silenced():
        return ExportedModel(opener(Path(path)), metadata)


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    check_installed("onnxruntime")
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _open_program(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _open_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.jit.load(path, map_location="cpu").eval()

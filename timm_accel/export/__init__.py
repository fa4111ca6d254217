"""Export trained models to ONNX, TorchScript and ``.pt2`` files with their classes and preprocessing."""

from timm_accel.export.any_format import export
from timm_accel.export.checking import Exported, ExportError
from timm_accel.export.metadata import Metadata, read_metadata
from timm_accel.export.runtime import ExportedModel, open_exported
from timm_accel.export.to_onnx import export_onnx
from timm_accel.export.to_program import export_program
from timm_accel.export.to_torchscript import export_torchscript

__all__ = [
    "ExportError",
    "Exported",
    "ExportedModel",
    "Metadata",
    "export",
    "export_onnx",
    "export_program",
    "export_torchscript",
    "open_exported",
    "read_metadata",
]

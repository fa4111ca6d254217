"""Export to ONNX, the format of most other runtimes; files are checked with onnxruntime."""

from collections.abc import Sequence
from functools import partial
from glob import escape
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from timm.utils.onnx import onnx_export
from torch import nn

from timm_accel.export.checking import TOLERANCE, Exported, ExportError, write_checked
from timm_accel.export.formats import check_installed, check_suffix
from timm_accel.export.metadata import ONNX_KEY
from timm_accel.export.preparation import Prepared, prepare
from timm_accel.messages import root_cause

OPSET = 18
_LIMIT = 2**31 - 2**27  # bytes of a protobuf file, with some room


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    opset: int = OPSET,
    dynamic_size: bool = False,
    external_data: bool = False,
    class_names: Sequence[str] | Any | None = None,
    normalize: bool = False,
    softmax: bool = False,
    temperature: float = 1.0,
    multi_label: bool = False,
    reparameterize: bool = True,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a model to ONNX, and compare the file with it before it is moved to `path`.

    An evaluation copy on the CPU is exported, with a batch dimension of any size, from ``images`` to ``logits`` or
    ``probabilities``; the model does not change. torch's dynamo exporter is tried first. If it fails or the outputs
    differ, the older exporter is tried.

    Args:
        model: A model with timm's ``pretrained_cfg``.
        path: ``.onnx``; it is replaced only by a file that passed the comparison.
        opset: The version of the operators.
        dynamic_size: Whether height and width are dynamic too.
        external_data: Whether the weights are written into a second file, whose name begins with the file's and holds
            a hash of them. This is always so when they exceed the 2 GB of a single file.
        class_names: The names in the order of the output, or a dataset that has them; None for the config's.
        normalize: Whether the file takes ``uint8`` images ``(B, C, H, W)`` and normalizes them itself.
        softmax: Whether the file returns probabilities.
        temperature: The divisor of the logits; the file applies it before a softmax, otherwise `load_classifier` does.
        multi_label: Whether the model is multi-label, for `load_classifier`.
        reparameterize: Whether to fuse branches that timm can fuse.
        tolerance: The largest accepted difference, as `checking.max_difference` computes it.

    Raises:
        ExportError: Both exporters fail, the difference exceeds the tolerance, or the disk is full.
        ModuleNotFoundError: The extra ``export`` is not installed.
        OSError: Nothing can be written there.
        TypeError: The model is not a module, or its output is not a tensor.
        ValueError: The suffix is unknown, the model has no data config, the class names do not fit, `dynamic_size` is
            set for a model with a fixed size, the temperature is not positive, or `softmax` is set for multi-label.

    Source: ``timm.utils.onnx.onnx_export``, ``torch.onnx.export``.
    """
    check_suffix(path, "onnx")
    check_installed("onnx", "onnxscript", "onnxruntime")
    path = Path(path)
    prepared = prepare(
        model,
        class_names=class_names,
        normalize=normalize,
        softmax=softmax,
        temperature=temperature,
        multi_label=multi_label,
        reparameterize=reparameterize,
    )
    sizes = [_other_size(prepared)] if dynamic_size else []

    def attempt(method: str) -> Exported:
        options = {"use_dynamo": method == "dynamo", "opset": opset, "dynamic_size": dynamic_size}
        write = partial(_write, prepared, external_data, options)
        return write_checked(path, prepared, write, method=method, tolerance=tolerance, opset=opset, other_sizes=sizes)

    try:
        exported = attempt("dynamo")
    except ExportError as error:
        if isinstance(error.__cause__, OSError):
            raise  # a full disk, for any method
        try:
            exported = attempt("torchscript")
        except ExportError as second:
            raise ExportError(f"{second} Before that, by dynamo: {root_cause(error)}.") from second
    _remove_other_data(path)
    return exported


def _other_size(prepared: Prepared) -> tuple[int, int]:
    """Return another size that the model takes, (height, width) in pixels."""
    _, height, width = prepared.metadata.input_size
    size = (height + 32, width + 64)
    try:
        with torch.inference_mode():
            prepared.eager(prepared.images(2, *size))
    except Exception as error:
        raise ValueError(
            f"Expected a model that takes images of any size, since dynamic_size is on, but got "
            f"{prepared.metadata.architecture}, which takes {height} by {width} and not {size[0]} by {size[1]} "
            f"({root_cause(error)}). Leave dynamic_size out, or create the model for other sizes, as timm's ViTs are "
            "by dynamic_img_size=True."
        ) from error
    return size


def _write(prepared: Prepared, external_data: bool, options: dict[str, Any], path: Path) -> None:
    import onnx

    output = "probabilities" if prepared.metadata.includes_softmax else "logits"
    onnx_export(
        prepared.module,
        str(path),
        example_input=prepared.images(2),
        input_names=["images"],
        output_names=[output],
        check=False,  # the finished file is checked below
        **options,
    )
    program = onnx.load(path)
    for leftover in path.parent.iterdir():
        leftover.unlink()  # the weights that the exporter wrote beside the file
    for node in chain(program.graph.node, *(function.node for function in program.functions)):
        del node.metadata_props[:]  # stack traces, which name the files of this machine (torch 2.14)
        node.doc_string = ""
    onnx.helper.set_model_props(program, {ONNX_KEY: prepared.metadata.to_json()})
    size = sum(len(tensor.raw_data) for tensor in program.graph.initializer)
    external = external_data or size > _LIMIT
    onnx.save_model(program, path, save_as_external_data=external, location=_data_name(path, program))
    onnx.checker.check_model(str(path), full_check=True)


def _data_name(path: Path, program: Any) -> str:
    """Return a name with a hash of the weights, so that an older file never loads newer weights."""
    content = sha256()
    for tensor in program.graph.initializer:
        content.update(tensor.raw_data)
    return f"{path.name}.{content.hexdigest()[:8]}.data"


def _remove_other_data(path: Path) -> None:
    """Remove external weights that the file does not name."""
    import onnx

    tensors = onnx.load(path, load_external_data=False).graph.initializer
    named = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    for data in path.parent.glob(f"{escape(path.name)}.????????.data"):
        if data.name not in named:
            data.unlink()

"""The command ``export``: write a trained model as an ONNX, TorchScript or .pt2 file, or as a package."""

from typing import Any, Literal

from timm_accel.commands.output.columns import print_facts
from timm_accel.commands.output.files import check_out, say_in_progress
from timm_accel.export import Exported, Metadata, read_metadata
from timm_accel.export import export as export_to
from timm_accel.export.checking import TOLERANCE
from timm_accel.export.formats import SUFFIXES
from timm_accel.messages import UsageError
from timm_accel.sharing import export_package
from timm_accel.terminal import print_fitted


def export(
    source: str,
    out: str | None = None,
    *,
    package: str | None = None,
    license: str = "unknown",
    example: bool = True,
    normalize: bool = False,
    softmax: bool = False,
    class_names: list[str] | None = None,
    temperature: float | None = None,
    multi_label: bool | None = None,
    reparameterize: bool = True,
    tolerance: float = TOLERANCE,
    opset: int | None = None,
    dynamic_size: bool = False,
    external_data: bool = False,
    method: Literal["script", "trace"] | None = None,
) -> None:
    """Export a trained model to the format of a file's ending, and compare the file with the model.

    An older file is only replaced by one that passed the comparison. With --package it is a folder that stands alone:
    model card, weights, ONNX file, predict.py and an example image.

    Args:
        source: A run, whose best or best_ema weights are exported, whichever have the better metric; or a folder of
            weights.
        out: The file: .onnx, .pt2, .pt or .torchscript; none with package.
        package: A new folder, in place of a file; only license and example go with it.
        license: The license for the model card of a package, such as apache-2.0.
        example: Whether an evaluation image is in the package.
        normalize: Whether the file takes uint8 images (B, C, H, W) and normalizes them itself.
        softmax: Whether the file returns probabilities.
        class_names: The names in the order of the output; None for those of the weights.
        temperature: The divisor of the logits; None for that of the weights.
        multi_label: Whether the model is multi-label; None for the entry of the weights.
        reparameterize: Whether to fuse branches that timm can fuse.
        tolerance: The largest accepted difference to the model, relative to its largest output.
        opset: The version of the operators, for .onnx; None for 18.
        dynamic_size: Whether height and width are dynamic too, for .onnx.
        external_data: Whether the weights are in a second file, for .onnx; above 2 GB they always are.
        method: How TorchScript is made, for .pt and .torchscript: script or trace; None for script.
    """
    given: dict[str, Any] = {
        "class_names": class_names,
        "temperature": temperature,
        "multi_label": multi_label,
        "opset": opset,
        "dynamic_size": dynamic_size or None,
        "external_data": external_data or None,
        "method": method,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if package is not None:
        changed = options | {"normalize": normalize, "softmax": softmax, "out": out}
        changed |= {"reparameterize": not reparameterize, "tolerance": tolerance != TOLERANCE}
        _refuse(package, [name for name, value in changed.items() if value])
        written = export_package(source, package, license=license, example=example)
        say_in_progress(source)
        print_fitted(f"Package: {written}")
        return
    if out is None:
        raise UsageError("Expected out or package, but got none. Name a file such as model.onnx, or --package FOLDER.")
    check_out(out, SUFFIXES)
    exported = export_to(
        source,
        out,
        normalize=normalize,
        softmax=softmax,
        reparameterize=reparameterize,
        tolerance=tolerance,
        **options,
    )
    say_in_progress(source)
    _print(exported, read_metadata(out))


def _refuse(package: str, beside: list[str]) -> None:
    if beside:
        raise UsageError(
            f"Expected package without {beside[0]}, since the files of a package fit each other, but got {package!r} "
            "with it. Leave one of them out."
        )


def _print(exported: Exported, about: Metadata) -> None:
    channels, height, width = about.input_size
    pixels = "uint8" if about.includes_normalization else "normalized float32"
    opset = "" if exported.opset is None else f", opset {exported.opset}"
    print_facts(
        {
            "file": exported.path,
            "format": f"{exported.format}{opset}, made by {exported.method}",
            "size": f"{exported.size / 1e6:.1f} MB",
            "takes": f"{pixels} images (B, {channels}, {height}, {width})",
            "returns": f"{'probabilities' if about.includes_softmax else 'logits'} (B, {about.num_classes})",
            "classes": ", ".join(about.class_names[:10]) + (", …" if about.num_classes > 10 else "")
            if about.class_names
            else "without names",
            "difference": f"{exported.max_difference:.1e} to the model, at most {exported.tolerance:.1e} is accepted",
        }
    )

"""From the folder of a run to a file of the format that its suffix names."""

from pathlib import Path
from typing import Any

from timm_accel.export.checking import Exported
from timm_accel.export.formats import format_of
from timm_accel.export.to_onnx import export_onnx
from timm_accel.export.to_program import export_program
from timm_accel.export.to_torchscript import export_torchscript
from timm_accel.models import CONFIG_FILE, open_classifier, weights_of_run
from timm_accel.models.heads import Head


def export(source: str | Path, out: str | Path, *, head: Head | None = None, **options: Any) -> Exported:
    """Export saved weights to the format that the suffix of `out` names, with all that ``config.json`` says of them.

    These are their class names, data config, fitted temperature, and whether an image may have several labels.

    Args:
        source: A folder with ``config.json`` and ``model.safetensors``, such as ``RUN/best`` or ``RUN/best_ema``, or a
            run folder, whose ``best`` or ``best_ema`` is taken, whichever has the better metric.
        out: ``.onnx``, ``.pt2``, ``.pt`` or ``.torchscript``.
        head: For a head of one's own, the function or module that made it.
        **options: Those of `export_onnx`, `export_program` or `export_torchscript`.

    Raises:
        FileNotFoundError: The folder holds no weights to use.
        ValueError: The suffix is unknown, or the head is needed or not.
    """
    exporters = {"onnx": export_onnx, "pt2": export_program, "torchscript": export_torchscript}
    exporter = exporters[format_of(out)]
    model, config = open_classifier(_weights_folder(Path(source)), head)
    names = {"class_names": "label_names", "temperature": "temperature", "multi_label": "multi_label"}
    stored = {option: config[name] for option, name in names.items() if name in config}
    return exporter(model, out, **(stored | options))


def _weights_folder(source: Path) -> Path:
    if (source / CONFIG_FILE).is_file():
        return source
    try:
        return weights_of_run(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Expected source to be a folder with config.json, or a run folder with best, but got {str(source)!r}. "
            "Check the spelling."
        ) from error

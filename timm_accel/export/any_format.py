"""Export the folder of a run to the format of a file's suffix."""

from inspect import signature
from pathlib import Path
from typing import Any

from timm_accel.export.checking import Exported
from timm_accel.export.formats import format_of
from timm_accel.export.to_onnx import export_onnx
from timm_accel.export.to_program import export_program
from timm_accel.export.to_torchscript import export_torchscript
from timm_accel.messages import nearest, nearest_path
from timm_accel.models import CONFIG_FILE, open_classifier, weights_of_run
from timm_accel.models.heads import Head
from timm_accel.states.run_dir import why_no_weights


def export(source: str | Path, out: str | Path, *, head: Head | None = None, **options: Any) -> Exported:
    """Export saved weights to the format of the suffix of `out`, with the entries of their ``config.json``.

    These are the class names, the data config, the fitted temperature, and whether the model is multi-label.

    Args:
        source: A folder with ``config.json`` and ``model.safetensors``, such as ``RUN/best`` or ``RUN/best_ema``, or a
            run folder, whose ``best`` or ``best_ema`` is exported, whichever has the better metric.
        out: ``.onnx``, ``.pt2``, ``.pt`` or ``.torchscript``.
        head: The function or module of a custom head.
        **options: Options of `export_onnx`, `export_program` or `export_torchscript`.

    Raises:
        FileNotFoundError: The folder holds no weights.
        TypeError: An option is unknown.
        ValueError: The suffix is unknown, or the head is missing or superfluous.
    """
    exporters = {"onnx": export_onnx, "pt2": export_program, "torchscript": export_torchscript}
    exporter = exporters[format_of(out)]
    known = list(signature(exporter).parameters)[2:]
    if unknown := [name for name in options if name not in known]:
        raise TypeError(
            f"Expected options of {exporter.__name__}, but got {unknown[0]!r}. {nearest(unknown[0], known)}"
        )
    model, config = open_classifier(weights_folder(Path(source)), head)
    names = {"class_names": "label_names", "temperature": "temperature", "multi_label": "multi_label"}
    stored = {option: config[name] for option, name in names.items() if name in config}
    return exporter(model, out, **(stored | options))


def weights_folder(source: Path) -> Path:
    """Return the folder of weights that a source is, or that of a run.

    Args:
        source: A folder with ``config.json``, or a run folder.

    Raises:
        FileNotFoundError: There are no weights.
    """
    if (source / CONFIG_FILE).is_file():
        return source
    try:
        return weights_of_run(source)
    except FileNotFoundError as error:
        if why_no_weights(source) is not None:
            raise
        raise FileNotFoundError(
            f"Expected source to be a folder with config.json, or a run folder with best, but got {str(source)!r}. "
            f"{nearest_path(source, 'Check the spelling.')}"
        ) from error

"""Write a trained model as a folder that stands alone: model card, weights, ONNX file and predictor."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from timm_accel.atomic import atomic_write
from timm_accel.export import export
from timm_accel.export.any_format import weights_folder
from timm_accel.export.formats import check_installed
from timm_accel.models import CONFIG_FILE, WEIGHTS_FILE, check_weights, read_config
from timm_accel.models.heads import Head
from timm_accel.models.integrity import signed_config
from timm_accel.predict import load_classifier
from timm_accel.sharing.card import Example, metrics_of, write_card
from timm_accel.sharing.example import example_image

CARD, PROGRAM, MODEL, EXAMPLE = "README.md", "predict.py", "model.onnx", "example.png"
_TEMPLATES = Path(__file__).parent / "templates"


def export_package(
    source: str | Path,
    out: str | Path,
    *,
    license: str = "unknown",
    example: bool = True,
    head: Head | None = None,
) -> Path:
    """Write a trained model as a folder that stands alone: it needs neither the run nor timm_accel.

    It holds ``README.md``, a model card as the Hugging Face hub shows it; ``config.json`` and ``model.safetensors``,
    which timm alone loads; ``model.onnx``, which takes ``uint8`` images and returns probabilities, for a multi-label
    model logits; ``predict.py``, which needs onnxruntime, numpy and pillow only; and ``example.png``, an evaluation
    image, if the data of the run are at hand. The folder appears complete or not at all.

    Args:
        source: The folder of a run, whose ``best`` or ``best_ema`` is taken, whichever has the better metric, or a
            folder of weights.
        out: A new folder.
        license: The license for the card, as the hub spells it, such as ``apache-2.0``.
        example: Whether an evaluation image is in the folder: without its EXIF, and at most 512 pixels wide and high.
        head: The function or module of a custom head.

    Returns:
        `out`.

    Raises:
        ExportError: The model cannot be exported to ONNX.
        FileExistsError: `out` exists already.
        FileNotFoundError: `source` holds no weights.
        ModuleNotFoundError: The extra ``export`` is not installed.
        OSError: Nothing can be written there.
        ValueError: The license is no name.
    """
    source, out = Path(source), Path(out)
    check_new_folder(out)
    if not re.fullmatch("[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"Expected license to be a name of the hub in lower case, such as 'apache-2.0', but got {license!r}. "
            "Leave it out if there is none."
        )
    check_installed("onnx", "onnxscript", "onnxruntime")
    weights = weights_folder(source)
    with atomic_write(out) as folder:
        folder.mkdir()
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            if (weights / name).is_file():
                shutil.copyfile(weights / name, folder / name)
        # from the copy, whose checksum is compared: a run in progress may replace its best weights meanwhile
        config = _without_paths(folder)
        export(folder, folder / MODEL, head=head, normalize=True, softmax=not config.get("multi_label"))
        shutil.copyfile(_TEMPLATES / PROGRAM, folder / PROGRAM)
        classifier = load_classifier(folder / MODEL)
        image = example_image(weights.parent, classifier) if example else None
        if image is not None:
            image.save(folder / EXAMPLE)
        shown = Example(EXAMPLE, classifier.predict(image)[0]) if image is not None else None
        write_card(folder / CARD, out.name, classifier, config, metrics_of(weights, config), shown, license)
    return out


def _without_paths(folder: Path) -> dict[str, Any]:
    """Return the config of a package; that of a soup gets the number of its folders, not where they are."""
    config = read_config(folder)
    about = config.get("averaged")
    if not isinstance(about, dict) or "folders" not in about:
        return config
    check_weights(folder, config)  # before the new checksum
    count = len(about["folders"])
    about = {name: value for name, value in about.items() if name != "folders"} | {"num_folders": count}
    config = signed_config(folder, config | {"averaged": about})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))
    return config


def check_new_folder(out: Path) -> None:
    """Raise a `FileExistsError` if there is anything in the place of a new folder."""
    if os.path.lexists(out):
        raise FileExistsError(
            f"Expected the package to be a new folder, but got {str(out)!r}, which exists. Name another folder."
        )

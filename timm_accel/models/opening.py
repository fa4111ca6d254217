"""Open folders of saved weights as models."""

from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from timm_accel.messages import one_line
from timm_accel.models.building import check_model_name
from timm_accel.models.heads import Head, attach_head
from timm_accel.models.integrity import CONFIG_FILE, WEIGHTS_FILE, check_weights, read_config
from timm_accel.models.saving import PIXEL_RANGE
from timm_accel.models.trial import REFUSALS
from timm_accel.states.run_dir import why_no_weights
from timm_accel.states.weights import BEST_FOLDERS

WEIGHTS = tuple(BEST_FOLDERS.values())  # folders of a run


def open_classifier(folder: str | Path, head: Head | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the model that `save_classifier` saved, its head included, in evaluation mode on the CPU.

    Args:
        folder: A folder with ``model.safetensors`` and ``config.json``.
        head: The function or the module of a custom head; None for timm's head and for `MlpHead`.

    Returns:
        The model, and the content of ``config.json``: the class names under ``label_names``, if there are any, and the
        data config under ``pretrained_cfg``; its ``pixel_range`` is beside it, and in the model's ``pretrained_cfg``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file has changed since it was saved, the model is not a timm model, the head is missing or
            superfluous, or the weights do not fit.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Expected folder to hold {WEIGHTS_FILE} and {CONFIG_FILE}, but got {str(folder)!r} without {name}. "
                "Name the folder best or best_ema of a run."
            )
    config = read_config(folder)
    check_weights(folder, config)
    if not config.get("architecture"):
        raise ValueError(
            f"Expected folder to hold a model of timm, but got {str(folder)!r} ({config.get('note', 'no architecture')}"
            f"). Build the model yourself and load {WEIGHTS_FILE} into it."
        )
    check_model_name(config["architecture"])
    if "num_classes" not in config:
        raise ValueError(
            f"Expected {CONFIG_FILE} to have num_classes, but got {str(folder)!r} without. Copy or save it again."
        )
    try:
        model = timm.create_model(f"local-dir:{folder}")
    except (TypeError, *REFUSALS) as error:
        raise ValueError(
            f"Expected {CONFIG_FILE} to describe a model that timm builds, but got {str(folder)!r} "
            f"({one_line(error)}). Copy or save it again."
        ) from error
    if config.get(PIXEL_RANGE) is not None:
        model.pretrained_cfg[PIXEL_RANGE] = tuple(config[PIXEL_RANGE])
    attach_head(model, _head_of(config, head), config["num_classes"])
    _load(model, folder, "note" in config and config.get("head") == "linear")
    return model.eval(), config


def _head_of(config: dict[str, Any], given: Head | None) -> Head:
    kind = config.get("head", "linear")
    if kind == "custom":
        if given is None:
            raise ValueError(
                "Expected head to be the function or module that made the head of these weights, since it is a "
                "custom head, but got None. Pass it to open_classifier(folder, head=…)."
            )
        return given
    if given is not None and given != kind:
        raise ValueError(
            f"Expected head to be None, since that of these weights is {kind!r}, but got {given!r}. Leave it out."
        )
    return kind


def _load(model: nn.Module, folder: Path, changed: bool) -> None:
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"Expected {WEIGHTS_FILE} to be complete, but got {str(path)!r} of {path.stat().st_size} bytes "
            f"({one_line(error)}). Copy or save it again."
        ) from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        what = "parts of the model, which were replaced," if changed else "head"
        raise ValueError(
            f"Expected {what} to fit the weights in {str(folder)!r}, but got another ({one_line(error)}). "
            "Pass what the model was made with."
        ) from error


def best_folders(run: Path) -> list[Path]:
    """Return the folders of the best weights of a run; that of the EMA weights is last.

    Args:
        run: The folder of a run.
    """
    return [run / name for name in WEIGHTS if (run / name / CONFIG_FILE).is_file()]


def weights_of_run(run: Path, weights: str | None = None) -> Path:
    """Return the folder of a run's weights: the requested one, or the one with the better metric.

    Args:
        run: The folder of a run.
        weights: ``best``, ``best_ema``, or None.

    Raises:
        FileNotFoundError: The run has no such folder.
    """
    found = {folder.name: read_config(folder) for folder in best_folders(run)}
    if not found and (why := why_no_weights(run)) is not None:
        raise FileNotFoundError(
            f"Expected path to be a run that holds {weights or ' or '.join(WEIGHTS)}, but got {str(run)!r}, {why}"
        )
    if not found or (weights is not None and weights not in found):
        raise FileNotFoundError(
            f"Expected path to be a run that holds {weights or ' or '.join(WEIGHTS)}, but got {str(run)!r} without. "
            "Train with SaveBestCallback, or name another folder."
        )
    if weights is not None or len(found) == 1:
        return run / (weights or next(iter(found)))
    best, best_ema = (_best_value(found[name]) for name in WEIGHTS)
    ema_is_better = best_ema > best if found["best"].get("greater_is_better", True) else best_ema < best
    return run / WEIGHTS[ema_is_better]


def _best_value(config: dict[str, Any]) -> float:
    best = config.get("best")
    value = best.get("value") if isinstance(best, dict) else None
    return value if isinstance(value, float) else float("nan")

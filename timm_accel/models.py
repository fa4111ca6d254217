"""timm models for classification that know their data config, and weights folders that timm alone can load."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_input_data_config
from timm.models import save_for_hf
from torch import nn

from timm_accel.data.image_size import height_and_width
from timm_accel.suggestions import nearest

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
UNFINISHED = ".unfinished"


def check_model_name(name: Any) -> None:
    """Raise a `ValueError` that suggests near names when timm has no such model, or the model no such tag."""
    architecture = str(name).split(".")[0]
    known, unknown = timm.list_models(), architecture
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(name)  # raises for an unknown tag
            return
        except RuntimeError:
            known, unknown = timm.list_pretrained(f"{architecture}.*"), name
    raise ValueError(
        f"Expected model to be a name of timm, but got {name!r}. {nearest(unknown, known)} "
        "timm.list_models() lists all."
    )


def create_classifier(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    image_size: int | tuple[int, int] | None = None,
    **model_args: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a timm model and resolve the data config that it is to be fed with.

    The config is written into ``model.pretrained_cfg`` too, so that saved weights carry it.

    Args:
        name: A model of ``timm.list_models()``.
        num_classes: The width of the head.
        pretrained: Whether to load timm's weights.
        image_size: The input size in pixels, one number or (height, width); None for the model's own. Models with a
            fixed input size are built for it.
        **model_args: Further arguments of ``timm.create_model``: ``drop_path_rate``, ``in_chans``, ….

    Returns:
        The model, and its data config with ``input_size`` ``(C, H, W)``, ``mean``, ``std``, ``interpolation``,
        ``crop_pct`` and ``crop_mode``.

    Raises:
        ValueError: The model is unknown, or an argument out of range.

    Source: ``timm.create_model``, ``timm.data.resolve_input_data_config``.
    """
    check_model_name(name)
    if num_classes < 2:
        raise ValueError(f"Expected num_classes to be at least 2, but got {num_classes}. Count the classes.")
    size = None
    if image_size is not None:
        size = height_and_width(image_size)
        if timm.get_pretrained_cfg(name).fixed_input_size:
            model_args.setdefault("img_size", size)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **model_args)
    except TypeError as error:
        raise TypeError(
            f"Expected arguments that {name} takes, but got {model_args!r} ({error}). Leave out those that it lacks."
        ) from error
    data_config = resolve_input_data_config(model, {"img_size": size})
    model.pretrained_cfg = {**model.pretrained_cfg, **data_config, "test_input_size": None, "test_crop_pct": None}
    return model, data_config


def save_classifier(model: nn.Module, folder: str | Path, class_names: list[str] | None = None, **about: Any) -> None:
    """Save weights to use: ``model.safetensors`` and ``config.json``, in timm's own local form.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then gives the same logits. Of a model that timm cannot
    rebuild the config says so. Each file replaces the old one whole, at once.

    Args:
        model: The plain model.
        folder: Where to; created if need be.
        class_names: The names of the classes, stored as ``label_names``.
        **about: Further plain values for ``config.json``.

    Source: ``timm.models.save_for_hf``.
    """
    folder = Path(folder)
    remove_unfinished(folder)
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True)
    named = about if class_names is None else {"label_names": class_names, **about}
    try:
        _write_classifier(model, unfinished, named)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            with open(unfinished / name, "rb") as written:
                os.fsync(written.fileno())
            os.replace(unfinished / name, folder / name)
    finally:
        remove_unfinished(folder)


def _write_classifier(model: nn.Module, folder: Path, about: dict[str, Any]) -> None:
    if hasattr(model, "pretrained_cfg"):
        plain = deepcopy(model).to(memory_format=torch.contiguous_format)  # safetensors takes no channels_last
        save_for_hf(plain, folder, model_config=about, safe_serialization=True)
        _note_if_changed(model, folder)
        return
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"architecture": None, "note": f"timm cannot rebuild {type(model).__name__}", **about}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed `save_classifier` has left in a folder."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _note_if_changed(model: nn.Module, folder: Path) -> None:
    """Say in ``config.json`` when timm, by that config, builds another model, such as one with its own head."""
    with torch.device("meta"):
        rebuilt = timm.create_model(f"local-dir:{folder}").state_dict()
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (rebuilt, model.state_dict())]
    if shapes[0] != shapes[1]:
        config = json.loads((folder / CONFIG_FILE).read_text())
        config["note"] = f"timm cannot rebuild this {type(model).__name__}: parts of it were replaced"
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))

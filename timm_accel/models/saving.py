"""Save weights as folders in timm's local format."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from timm_accel.atomic import atomic_write, remove_leftover
from timm_accel.models.heads import MlpHead, classifier_names
from timm_accel.models.integrity import CONFIG_FILE, WEIGHTS_FILE, signed_config
from timm_accel.models.lora import has_lora, merge_lora
from timm_accel.models.trial import create_on_meta

PIXEL_RANGE = "pixel_range"  # in the config, and in the data config


def save_classifier(
    model: nn.Module,
    folder: str | Path,
    class_names: list[str] | None = None,
    data_config: Mapping[str, Any] | None = None,
    **about: Any,
) -> None:
    """Save the weights of a model as ``model.safetensors`` and ``config.json``, in timm's local format.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then gives the same logits. The config names another head
    than timm's under ``head``: then timm gives the same features with ``num_classes=0``, and `open_classifier` rebuilds
    the complete model. A note in the config tells when timm cannot rebuild the model at all. Each file is written
    atomically. The config has the size and SHA-256 of the weights and a SHA-256 of its content under ``integrity``,
    which are checked when the folder is opened. Adapters (LoRA) are merged into the saved weights.

    Args:
        model: The unwrapped model; it does not change.
        folder: The folder to write to; it is created if it is missing.
        class_names: The names of the classes, stored as ``label_names``.
        data_config: The preprocessing of the evaluation, in place of the model's: ``input_size``, ``crop_pct``, ….
        **about: Further plain values for ``config.json``.

    Source: ``timm.models.save_for_hf``, which does not take shared tensors.
    """
    folder = Path(folder)
    model = merge_lora(deepcopy(model)) if has_lora(model) else model
    named = about if class_names is None else {"label_names": class_names, **about}
    with atomic_write(folder / CONFIG_FILE) as config:
        _write_classifier(model, config.parent, named)
        if data_config is not None:
            _write_data_config(config, data_config)
        signed = signed_config(config.parent, json.loads(config.read_text()))
        config.write_text(json.dumps(signed, indent=2))


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of a killed `save_classifier` from a folder."""
    remove_leftover(folder / CONFIG_FILE)


def _write_classifier(model: nn.Module, folder: Path, about: dict[str, Any]) -> None:
    # copies, since safetensors takes neither channels_last nor the shared tensors of some families
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    if hasattr(model, "pretrained_cfg"):
        save_config_for_hf(model, folder / CONFIG_FILE, model_config=about)
        _write_data_config(folder / CONFIG_FILE, {})
        _describe_head(model, folder)
        return
    config = {"architecture": None, "note": f"timm cannot rebuild {type(model).__name__}", **about}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))


def _write_data_config(path: Path, data_config: Mapping[str, Any]) -> None:
    config = json.loads(path.read_text())
    if "pretrained_cfg" in config:
        stored = config["pretrained_cfg"] = {**config["pretrained_cfg"], **data_config}
        if PIXEL_RANGE in stored:  # timm (1.0.31) refuses keys there that it does not know
            config[PIXEL_RANGE] = stored.pop(PIXEL_RANGE)
        path.write_text(json.dumps(config, indent=2))


def _describe_head(model: nn.Module, folder: Path) -> None:
    """Write the head into ``config.json``, and a note on the parts that timm does not rebuild by that config."""
    rebuilt = create_on_meta(f"local-dir:{folder}")
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["head"] = _head_kind(model, rebuilt)
    kind = type(model).__name__
    if not _same_shapes(model, rebuilt, but=classifier_names(model)):
        config["note"] = f"timm cannot rebuild this {kind}: parts of it were replaced"
    elif config["head"] != "linear":
        config["note"] = (
            f"timm cannot rebuild the head of this {kind}, parts of it were replaced: timm.create_model with "
            "num_classes=0 gives its features, timm_accel.models.open_classifier the whole"
        )
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))


def _head_kind(model: nn.Module, rebuilt: nn.Module) -> str:
    heads = [(model.get_submodule(name), rebuilt.get_submodule(name)) for name in classifier_names(model)]
    if all(type(own) is type(timms) and _same_shapes(own, timms) for own, timms in heads):
        return "linear"
    return "mlp" if len(heads) == 1 and type(heads[0][0]) is MlpHead else "custom"


def _same_shapes(model: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    heads = tuple(f"{name}." for name in but)
    first, second = (
        {name: tensor.shape for name, tensor in each.state_dict().items() if not name.startswith(heads)}
        for each in (model, other)
    )
    return first == second

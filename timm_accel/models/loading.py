"""Create a model with weights from timm, the hub, a file, a folder or a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from timm_accel.messages import one_line
from timm_accel.models.building import build, check_model_name
from timm_accel.models.heads import Head, attach_head, init_small_classifier
from timm_accel.models.sources import FoundWeights, architecture_of, create_pretrained, is_remote, read_source
from timm_accel.models.trial import REFUSALS
from timm_accel.models.weights import check_fit, compare_classes, load_head, recorded_load, report

DATA_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def build_with_weights(
    name: str, weights: str | Path | None, options: dict[str, Any], head: Head, class_names: Sequence[str] | None = None
) -> nn.Module:
    """Create a timm model, give it its head, and load weights into both.

    Its attribute ``weights_report`` is the `LoadReport`, or None for a family that reads files of other formats itself.

    Args:
        name: A model of ``timm.list_models()``.
        weights: As for `create_classifier`; None for timm's weights.
        options: Arguments of ``timm.create_model``.
        head: As for `create_classifier`.
        class_names: As for `create_classifier`.

    Raises:
        FileNotFoundError: The weights do not exist.
        OSError: The weights could not be downloaded.
        ValueError: The weights are of another model.
    """
    architecture = name.split(".")[0]
    source = _find(name, weights)
    found = _remote_architecture(source.where) if source.is_remote else source.config.get("architecture")
    if found and found != architecture:
        raise ValueError(
            f"Expected weights to be of {architecture}, but got {source.where!r}, which are of {found}. Create that "
            "model, or choose other weights."
        )
    with recorded_load(source.tensors) as record:
        if source.is_remote:
            model = create_pretrained(source.where, **options)
        else:
            model = _build_with_tensors(name, source, options)
    if record.called:
        check_fit(record, architecture, source.where)
    attach_head(model, head, options["num_classes"])
    if not record.called:
        model.weights_report = None
        return model
    named = source.class_names or source.config.get("label_names") or model.pretrained_cfg.get("label_names")
    classes = compare_classes(named, class_names)  # timm has read the names of the hub
    head_loaded = classes in ("same", "unknown") and load_head(model, record)
    if not head_loaded and head == "linear" and model.num_classes:
        init_small_classifier(model)
    model.weights_report = report(model, record, source.where, head_loaded, classes)
    return model


def _find(name: str, weights: str | Path | None) -> FoundWeights:
    if weights is None:
        return FoundWeights(name, {}, is_remote=True)
    if isinstance(weights, str) and is_remote(weights):
        return FoundWeights(weights, {}, is_remote=True)
    return read_source(weights)


def _remote_architecture(weights: str) -> str:
    if ":" not in weights:
        check_model_name(weights)
        return weights.split(".")[0]
    return architecture_of(weights)


def _build_with_tensors(name: str, source: FoundWeights, options: dict[str, Any]) -> nn.Module:
    about = source.config.get("pretrained_cfg", {})
    overlay = {key: about[key] for key in DATA_KEYS if about.get(key) is not None}
    overlay |= {"state_dict": source.tensors, "custom_load": False}
    overlay |= {
        "num_classes": options["num_classes"],
        "label_offset": 0,
    }  # so timm does not load the head: `load_head` does
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (TypeError, *REFUSALS) as error:
        with torch.device("meta"):
            build(name, options)  # raises for options that fail without weights too
        raise ValueError(
            f"Expected weights to fit {name}, but got {source.where!r} ({one_line(error)}). "
            "Create the model that they are of."
        ) from error

"""Create timm models for classification with a data config, a head, weights and frozen stages."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_input_data_config
from timm.layers import use_reentrant_ckpt
from torch import nn

from timm_accel.data.transforms.create import height_and_width
from timm_accel.models.building import build, check_model_name, check_pooling, try_out
from timm_accel.models.freezing import freeze_stages
from timm_accel.models.heads import Head, attach_head, check_head
from timm_accel.models.loading import build_with_weights
from timm_accel.models.lora import Lora, add_lora, check_lora


def create_classifier(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    in_chans: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    global_pool: str | None = None,
    head: Head = "linear",
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    grad_checkpointing: bool = False,
    freeze: int | Sequence[str] = 0,
    lora: Lora | None = None,
    scriptable: bool = False,
    exportable: bool = False,
    **model_args: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a timm model and resolve the data config of its input.

    The config is also written into ``model.pretrained_cfg``, so saved weights include it. A report of the loaded
    weights is logged and stored as ``model.weights_report`` (a `LoadReport`). A forward pass of two black images on
    the meta device checks the shapes of input and output.

    Args:
        name: A model of ``timm.list_models()``.
        num_classes: The width of the head; 0 for features without a head.
        pretrained: Whether to load timm's weights.
        weights: Other weights: a file, a folder of weights (with or without ``local-dir:`` before it), the folder of a
            run or of a state, a name on the hub (``hf-hub:…``), or a timm model with a tag (``resnet18.a1_in1k``). The
            data config of a folder or name is used too. A head of another shape starts from random weights.
        class_names: The names of the classes, in the order of their labels; weights whose names are others, or in
            another order, get a new head. None keeps every head that fits.
        in_chans: Channels of an image; None for those of the weights. The first convolution is adapted to it.
        image_size: The input size in pixels, one number or (height, width); None for the model's default. Models with a
            fixed input size are built for it.
        global_pool: How the feature map becomes a vector: ``avg``, ``max``, ``avgmax``, ``catavgmax`` (twice as wide),
            ``token``, ``map``, …, as the family has them; ``""``, with ``num_classes=0``, returns the map.
        head: ``"linear"`` (timm's), ``"mlp"`` (`MlpHead`), a function of ``(in_features, num_classes)``, or a module.
            The last three need a family that classifies with one linear layer.
        drop_rate: Dropout before the head; None for the model's default.
        drop_path_rate: Stochastic depth; None for the model's default.
        grad_checkpointing: Whether to compute activations twice in training, which saves memory.
        freeze: How many stages, from the stem on (-1: all but the last), or which of `stage_names` to freeze.
        lora: The rank of adapters that are trained beside frozen weights (LoRA, `timm_accel.models.lora`), or arguments
            of ``peft.LoraConfig`` by name; the classifier is trained too. None trains the weights themselves.
        scriptable: Whether layers are chosen that TorchScript can compile.
        exportable: Whether layers are chosen that exporters can trace.
        **model_args: Further arguments of ``timm.create_model``.

    Returns:
        The model, and its data config with ``input_size`` ``(C, H, W)``, ``mean``, ``std``, ``interpolation``,
        ``crop_pct`` and ``crop_mode``.

    Raises:
        FileNotFoundError: The weights do not exist.
        ModuleNotFoundError: `lora` is given, and peft is not installed.
        OSError: The weights could not be downloaded.
        TypeError: The model lacks an argument, or the head is of another kind.
        ValueError: The model is unknown, an argument is out of range or is missing in this family, the weights do not
            fit, or the head's output has another shape.

    Source: ``timm.create_model``, ``timm.data.resolve_input_data_config``.
    """
    check_model_name(name)
    _check_num_classes(num_classes)
    _check_class_names(class_names, num_classes)
    check_head(head, num_classes)
    check_pooling(global_pool, num_classes)
    if pretrained and weights is not None:
        raise ValueError(
            f"Expected weights to be None with pretrained=True, but got {str(weights)!r}. Leave out one of the two."
        )
    _check_lora(lora, freeze, grad_checkpointing)
    size = None if image_size is None else height_and_width(image_size)
    options = _options(
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        scriptable=scriptable or None,
        exportable=exportable or None,
        **model_args,
    )
    if size is not None and timm.get_pretrained_cfg(name).fixed_input_size:
        options.setdefault("img_size", size)
    if pretrained or weights is not None:
        model = build_with_weights(name, weights, options, head, class_names)
    else:
        model = build(name, options)
        attach_head(model, head, num_classes)
    data_config = resolve_input_data_config(model, {"img_size": size})
    _settle_config(model, name, data_config)
    try_out(model, name, options, data_config["input_size"], head)
    if grad_checkpointing:
        _save_memory(model, name)
    if freeze:
        freeze_stages(model, freeze)
    if lora is not None:
        add_lora(model, lora, data_config["input_size"])
    return model, data_config


def _options(**options: Any) -> dict[str, Any]:
    """Return the arguments that are not None, since not every family has all of them."""
    return {name: value for name, value in options.items() if value is not None}


def _check_num_classes(num_classes: int) -> None:
    is_count = isinstance(num_classes, int | Integral) and not isinstance(num_classes, bool)
    if not is_count or num_classes == 1 or num_classes < 0:
        raise ValueError(
            f"Expected num_classes to be at least 2, or 0 for features, but got {num_classes!r}. Count the classes."
        )


def _check_class_names(class_names: Sequence[str] | None, num_classes: int) -> None:
    if class_names is not None and (isinstance(class_names, str) or len(class_names) != num_classes):
        shown = repr(class_names) if isinstance(class_names, str) else f"{len(class_names)} names"
        raise ValueError(
            f"Expected class_names to be a list of num_classes={num_classes} names, but got {shown}. Pass those of the "
            "training dataset."
        )


def _check_lora(lora: Lora | None, freeze: int | Sequence[str], grad_checkpointing: bool) -> None:
    if lora is None:
        return
    check_lora(lora)
    if freeze:
        raise ValueError(
            "Expected freeze to be 0 with lora, which freezes all but the adapters and the classifier, but got "
            f"{freeze!r}. Leave one of them out."
        )
    if grad_checkpointing and use_reentrant_ckpt():
        raise ValueError(
            "Expected timm's checkpointing not to be reentrant with lora, since the first adapters would get no "
            "gradient, but got TIMM_REENTRANT_CKPT or set_reentrant_ckpt(True). Leave it out."
        )


def _settle_config(model: Any, name: str, data_config: dict[str, Any]) -> None:
    """Write the data config into ``pretrained_cfg``, and remove the weights that timm left there."""
    config = {**model.pretrained_cfg, **data_config, "test_input_size": None, "test_crop_pct": None}
    if config.pop("state_dict", None) is not None:
        config["num_classes"] = timm.get_pretrained_cfg(name).num_classes
    model.pretrained_cfg = model.default_cfg = config


def _save_memory(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ValueError(
            f"Expected grad_checkpointing to be False for {name}, which has none, but got True. Leave it out."
        ) from error

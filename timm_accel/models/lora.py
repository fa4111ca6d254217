"""Low-rank adapters (LoRA) by the library peft: small weights that are trained beside frozen ones.

An adapted layer computes ``W x + (lora_alpha / r) B A x`` with its frozen weights W. B starts at zero, so that the
model computes at first what it computed before. The classifier is not adapted, but trained as a whole.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from numbers import Integral
from typing import Any

import torch
from torch import nn

from timm_accel.messages import nearest, one_line
from timm_accel.models.freezing import freeze_stages, keep_frozen_norms
from timm_accel.models.heads import classifier_names
from timm_accel.models.trial import without_data

Lora = int | Mapping[str, Any]
_NOT_TAKEN = ("exclude_modules", "modules_to_save", "target_parameters", "layer_replication")


def check_lora(lora: Any) -> None:
    """Raise a `ValueError` for what is neither a rank nor arguments of ``peft.LoraConfig``."""
    options: dict[str, Any] = dict(lora) if isinstance(lora, Mapping) else {"r": lora}
    rank = options.get("r", 8)
    if isinstance(rank, bool) or not isinstance(rank, int | Integral) or rank < 1:
        raise ValueError(
            f"Expected lora to be a rank of at least 1, or arguments of peft.LoraConfig with r, but got {lora!r}. "
            "Usual ranks are 4 to 64."
        )
    for name in _NOT_TAKEN:
        if name in options:
            raise ValueError(
                f"Expected lora without {name!r}, since all but the adapters and the classifier is frozen, but got "
                f"{options[name]!r} for it. Leave it out; target_modules names the layers."
            )


def require_peft() -> None:
    """Raise a `ModuleNotFoundError` where peft is not installed."""
    if find_spec("peft") is None:
        raise ModuleNotFoundError(
            "Expected the package peft to be installed, since lora needs it, but it is missing. Run "
            "pip install 'timm_accel[lora]'."
        )


def add_lora(model: nn.Module, lora: Lora, input_size: tuple[int, int, int]) -> None:
    """Freeze a timm model, and give its layers adapters that are trained, beside its classifier.

    Without ``target_modules``, every linear layer is adapted that is at least as wide as the rank. Where convolutions
    hold more weights than linear layers, each of them is adapted too that is not grouped.

    Args:
        model: The model with its head.
        lora: The rank, or arguments of ``peft.LoraConfig``.
        input_size: ``(C, H, W)`` of an image.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: An argument is wrong, no layer has such a name, or a layer cannot be adapted.

    Source: arXiv 2106.09685, ``peft.inject_adapter_in_model``.
    """
    check_lora(lora)
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    options: dict[str, Any] = dict(lora) if isinstance(lora, Mapping) else {"r": lora}
    if unknown := options.keys() - (known := signature(LoraConfig).parameters.keys()):
        name = min(unknown)
        raise ValueError(f"Expected arguments of peft.LoraConfig in lora, but got {name!r}. {nearest(name, known)}")
    layers = _adaptable(model, input_size)
    targets = options.get("target_modules")
    if targets is None:
        options["target_modules"] = _exactly(_widest(layers, options.get("r", 8), model))
    elif not isinstance(targets, str):
        _check_names(targets, model)
    heads = "|".join(map(re.escape, classifier_names(model)))
    try:
        config = LoraConfig(**options, exclude_modules=rf"({heads})(\..*)?" if heads else None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd layer with groups")  # refused below
            inject_adapter_in_model(config, model)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected lora to be arguments of peft.LoraConfig that fit {_name(model)}, but got {lora!r} "
            f"({one_line(error)}). Its layers are {', '.join(_kinds(layers))}."
        ) from error
    _check_adapted(model, layers)
    for name in classifier_names(model):
        model.get_submodule(name).requires_grad_(True)
    keep_frozen_norms(model)


def has_lora(model: nn.Module) -> bool:
    """Return whether layers of a model have adapters."""
    return hasattr(model, "peft_config")


def merge_lora(model: nn.Module) -> nn.Module:
    """Merge the adapters of a model into its layers, in place, and return it: the model is timm's again, not frozen.

    Its outputs stay the same within rounding. A model without adapters does not change.

    Args:
        model: The unwrapped model.

    Source: arXiv 2106.09685, ``peft.tuners.lora.LoraLayer.merge``.
    """
    if has_lora(model):
        for name, layer in _adapted(model).items():
            for parameter in layer.get_base_layer().parameters():
                parameter.data = parameter.data.clone()  # an EMA model may use the same memory
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
        del model.peft_config
        freeze_stages(model, 0)
    return model


def _adapted(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _adaptable(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, nn.Module]:
    """Return the layers outside of the classifier that can be adapted, and merged later.

    Subclasses may compute something else from their weights. Some families use the weights of a layer without calling
    it (``qkv`` of BEiT and Swin v2): an adapter would have no effect there.
    """
    heads = tuple(f"{name}." for name in classifier_names(model))
    trial, called = without_data(model).eval(), set()
    for name, module in trial.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.no_grad():
        trial(torch.zeros(2, *input_size, device="meta"))
    return {
        name: module
        for name, module in model.named_modules()
        if name in called and not f"{name}.".startswith(heads) and _is_adaptable(module)
    }


def _is_adaptable(module: nn.Module) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _widest(layers: Mapping[str, nn.Module], rank: int, model: nn.Module) -> list[str]:
    """Return the names of the layers that are adapted by default."""
    sizes: dict[type, int] = defaultdict(int)
    for layer in layers.values():
        sizes[type(layer)] += sum(each.numel() for each in layer.parameters())
    kinds = nn.Linear if sizes[nn.Linear] > sizes[nn.Conv2d] else (nn.Linear, nn.Conv2d)
    widths = {name: _width(layer) for name, layer in layers.items() if isinstance(layer, kinds)}
    if not widths:
        raise ValueError(
            f"Expected lora with a model that has linear layers or convolutions beside its classifier, but got "
            f"{_name(model)}, which has none. Leave lora out."
        )
    if rank > max(widths.values()):
        raise ValueError(
            f"Expected the rank of lora to be at most {max(widths.values())}, the width of the widest layer of "
            f"{_name(model)}, but got {rank}. Choose a smaller one."
        )
    return [name for name, width in widths.items() if width >= rank]


def _width(layer: Any) -> int:
    """Return the highest rank that the weights of a layer can have."""
    return min(layer.weight.shape[0], layer.weight[0].numel())


def _exactly(names: list[str]) -> str:
    return "|".join(map(re.escape, names))


def _check_names(targets: Any, model: nn.Module) -> None:
    paths = [name for name, _ in model.named_modules() if name]
    for target in targets:
        if target in classifier_names(model) or not any(f".{path}".endswith(f".{target}") for path in paths):
            suffixes = dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths)
            raise ValueError(
                f"Expected target_modules of lora to be layers of {_name(model)} without the classifier, which is "
                f"trained as a whole, but got {target!r}. "
                f"{nearest(target, [*suffixes, *paths])}"
            )


def _check_adapted(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in _adapted(model).items():
        if name not in layers:
            raise ValueError(
                f"Expected target_modules of lora to be linear layers and convolutions that {_name(model)} calls, "
                f"neither grouped nor of another kind, but got {name!r} ({type(layer.get_base_layer()).__name__}). "
                f"Choose among {', '.join(_kinds(layers))}."
            )
        if (rank := max(layer.r.values())) > (width := _width(layers[name])):
            raise ValueError(
                f"Expected the rank of lora to be at most {width}, the width of {name!r}, but got {rank}. Choose a "
                "smaller one, or other target_modules."
            )


def _kinds(layers: Mapping[str, nn.Module]) -> list[str]:
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers))


def _name(model: Any) -> str:
    return model.pretrained_cfg.get("architecture") or type(model).__name__

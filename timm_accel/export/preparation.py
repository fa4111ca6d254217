"""Prepare a model for export: an evaluation copy on the CPU, with optional normalization and softmax.

The user's model does not change; it may be in any mode, on any device and wrapped.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from timm.data import resolve_data_config
from timm.layers import BatchNormAct2d
from timm.layers.norm_act import SyncBatchNormAct
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from timm_accel.data.classes import class_names as names_of
from timm_accel.data.transforms.data_config import check_mean_and_std
from timm_accel.export.metadata import Metadata
from timm_accel.messages import root_cause
from timm_accel.models.lora import merge_lora
from timm_accel.models.saving import PIXEL_RANGE


@dataclass(frozen=True)
class Prepared:
    """A model ready for export.

    Args:
        eager: The evaluation copy as it is, which the file is compared with.
        module: The one that is exported, re-parameterised where that was asked for.
        metadata: What is stored beside it.
    """

    eager: nn.Module
    module: nn.Module
    metadata: Metadata

    def images(self, count: int, height: int | None = None, width: int | None = None) -> Tensor:
        """Draw random images ``(count, C, H, W)``: ``uint8`` where the file normalizes, otherwise standard normal."""
        channels, *size = self.metadata.input_size
        shape = (count, channels, height or size[0], width or size[1])
        generator = torch.Generator().manual_seed(count)
        if self.metadata.includes_normalization:
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return torch.randn(shape, generator=generator)


def prepare(
    model: nn.Module,
    *,
    class_names: Sequence[str] | Any | None,
    normalize: bool,
    softmax: bool,
    temperature: float,
    multi_label: bool,
    reparameterize: bool,
) -> Prepared:
    """Copy a model for export and collect its metadata.

    Args:
        model: A model with timm's ``pretrained_cfg``, in any mode, on any device, wrapped by DDP or ``torch.compile``
            or not.
        class_names: The names in the order of the output, or a dataset that has them; None for the config's
            ``label_names``.
        normalize: Whether the export includes the normalization.
        softmax: Whether the export includes the temperature and a softmax.
        temperature: The divisor of the logits.
        multi_label: Whether the model is multi-label.
        reparameterize: Whether to fuse branches that timm can fuse.

    Raises:
        TypeError: The model is not a module, or its output is not a tensor.
        ValueError: The model has no data config, or a wrong one, the number of class names is not that of the outputs,
            the temperature is not positive, or `softmax` is set for a multi-label model.
    """
    _check_probabilities(softmax, temperature, multi_label)
    copy = evaluation_copy(model)
    about: dict[str, Any] = getattr(copy, "pretrained_cfg", None) or {}
    config, num_classes = _data_config(copy, about)
    metadata = Metadata(
        architecture=about.get("architecture") or type(copy).__name__,
        num_classes=num_classes,
        class_names=_names(class_names, about),
        includes_normalization=normalize,
        includes_softmax=softmax,
        temperature=1.0 if softmax else temperature,
        multi_label=multi_label,
        pixel_range=about.get(PIXEL_RANGE),
        **config,
    )
    if metadata.class_names is not None and len(metadata.class_names) != metadata.num_classes:
        raise ValueError(
            f"Expected class_names to be as many as the model's {metadata.num_classes} outputs, but got "
            f"{len(metadata.class_names)}. Pass the names of the data it was trained on."
        )
    # `reparameterize_model` of timm 1.0.31 works on a copy, so `copy` stays unfused
    inference = reparameterize_model(copy) if reparameterize else copy
    eager, module = (_with_normalization_and_softmax(each, metadata, temperature) for each in (copy, inference))
    return Prepared(eager, module, metadata)


def evaluation_copy(model: nn.Module) -> nn.Module:
    """Return a contiguous float32 copy in evaluation mode on the CPU, without wrappers, SyncBatchNorm and adapters.

    Args:
        model: Any module.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"Expected model to be a torch module, but got {type(model).__name__}. For a folder use "
            "timm_accel.export.export."
        )
    while (inner := extract_model_from_parallel(model, keep_torch_compile=False)) is not model:
        model = inner
    copy = deepcopy(model)
    if copy.__dict__.pop("_original_forward", None) is not None:
        del copy.forward  # accelerate 1.15 sets a forward with autocast on the instance
    merge_lora(copy)
    if hasattr(copy, "set_grad_checkpointing"):
        copy.set_grad_checkpointing(False)
    for module in copy.modules():
        vars(module).pop("train", None)  # set by `freeze_stages`; it names batch norms, which fusing removes
    copy = _plain_batch_norm(copy).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    return copy.eval().requires_grad_(False)


class _BatchNorm(nn.BatchNorm2d):
    """BatchNorm over inputs of any number of dimensions, as in SyncBatchNorm."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _plain_batch_norm(module: nn.Module) -> nn.Module:
    """Revert timm's and torch's ``convert_sync_batchnorm``; neither library can revert all cases."""
    plain = module
    if isinstance(module, nn.SyncBatchNorm):
        kind = BatchNormAct2d if isinstance(module, SyncBatchNormAct) else _BatchNorm
        plain = kind(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        plain.load_state_dict(module.state_dict())
        for name in ("act", "drop"):
            if hasattr(module, name):
                setattr(plain, name, getattr(module, name))
        return plain
    for name, child in module.named_children():
        setattr(module, name, _plain_batch_norm(child))
    return plain


class Normalize(nn.Module):
    """Scale ``uint8`` images ``(B, C, H, W)`` to 0 to 1, subtract the mean and divide by the std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.to(torch.float32) / 255 - self.mean) / self.std


class Softmax(nn.Module):
    """Turn logits ``(B, num_classes)`` into probabilities, at a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        return (logits / self.temperature).softmax(dim=-1)


def _check_probabilities(softmax: bool, temperature: float, multi_label: bool) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"Expected temperature to be positive, but got {temperature!r}. Find one by "
            "timm_accel.predict.fit_temperature, or leave it out."
        )
    if softmax and multi_label:
        raise ValueError(
            "Expected softmax to be False for a multi-label model, whose probabilities are sigmoids, but got True. "
            "Leave it out."
        )


def _with_normalization_and_softmax(model: nn.Module, metadata: Metadata, temperature: float) -> nn.Module:
    parts = [model]
    if metadata.includes_normalization:
        parts.insert(0, Normalize(metadata.mean, metadata.std))
    if metadata.includes_softmax:
        parts.append(Softmax(temperature))
    return nn.Sequential(*parts).eval() if len(parts) > 1 else model


def _data_config(model: nn.Module, about: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return timm's data config with the true channels of the model, and the width of its output."""
    if not about:
        raise ValueError(
            f"Expected model to have a data config in pretrained_cfg, since it goes into the file, but got a "
            f"{type(model).__name__} without. Create it with timm_accel.create_classifier or timm.create_model."
        )
    config = resolve_data_config(pretrained_cfg=about)
    config["input_size"], num_classes = _trial(model, config["input_size"], about)
    channels = config["input_size"][0]
    for name in ("mean", "std"):
        values = tuple(config[name])
        config[name] = values * channels if len(values) == 1 else values
        if len(config[name]) != channels:
            raise ValueError(
                f"Expected the data config's {name} to have one value for each of the model's {channels} channels, but "
                f"got {values}. Set model.pretrained_cfg[{name!r}]."
            )
    config["mean"], config["std"] = check_mean_and_std(config["mean"], config["std"], " of the data config")
    return config, num_classes


def _trial(model: nn.Module, size: tuple[int, int, int], about: dict[str, Any]) -> tuple[tuple[int, int, int], int]:
    """Return the input size ``(C, H, W)`` of the model, and the width of its output.

    timm's config (1.0.31) has 3 channels even for ``in_chans=1``; then the channels of the first convolution are tried.
    """
    try:
        with torch.inference_mode():
            output = model(torch.zeros(2, *size))
    except Exception as error:
        channels = _first_channels(model, about)
        if channels not in (None, size[0]):
            return _trial(model, (channels, *size[1:]), about)
        raise ValueError(
            f"Expected model to take images of its data config's input_size {tuple(size)}, but got "
            f"{root_cause(error)}. Set model.pretrained_cfg['input_size']."
        ) from error
    if not isinstance(output, Tensor):
        raise TypeError(
            f"Expected model to return a tensor in evaluation, but got a {type(output).__name__}. Wrap it in a module "
            "that returns the logits."
        )
    return size, output.shape[-1]


def _first_channels(model: nn.Module, about: dict[str, Any]) -> int | None:
    first = about.get("first_conv")
    name = first[0] if isinstance(first, tuple | list) else first
    weight = dict(model.named_parameters()).get(f"{name}.weight")
    return None if weight is None or weight.dim() != 4 else weight.shape[1]


def _names(class_names: Sequence[str] | Any | None, about: dict[str, Any]) -> tuple[str, ...] | None:
    if class_names is None:
        class_names = about.get("label_names")
    elif not isinstance(class_names, Sequence):
        class_names = names_of(class_names)
    return None if class_names is None else tuple(str(name) for name in class_names)

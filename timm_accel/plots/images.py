"""Parts of the figures: images scaled from 0 to 1, titles, and checks of the arguments."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import FastCollateMixup, Mixup
from torch.utils.data import IterableDataset
from torchvision.transforms import Normalize, v2
from torchvision.transforms.functional import pil_to_tensor

from timm_accel.data.transforms.device_transform import DeviceTransform
from timm_accel.plots.text import TITLE_LETTERS, _drawable, _shorten


def _to_unit_range(images: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    """Return a copy of a batch on the CPU, with values from 0 to 1."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            f"Expected images to be a tensor (B, C, H, W), but got {type(images).__name__}. "
            "Stack them with torch.stack."
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            "Expected images to be a batch (B, C, H, W) with 1 or 3 channels, but got the shape "
            f"{tuple(images.shape)}. Add a dimension to a single image: image[None]."
        )
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return images / 255
    images = images.float()
    if mean is not None or std is not None:
        images = images * _per_channel("std", std, images) + _per_channel("mean", mean, images)
    low, high = images.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ValueError("Expected images to be finite, but got NaN or infinity. Check the code that creates them.")
    if mean is None and (low < -1 / 255 or high > 1 + 1 / 255):
        raise ValueError(
            f"Expected images to be from 0 to 1 without mean and std, but got {low:.3g} to {high:.3g}. "
            "Pass the mean and the std of their normalization."
        )
    return images.clamp(0, 1)  # noise in erased regions may exceed the range


def _per_channel(name: str, values: Sequence[float] | None, images: torch.Tensor) -> torch.Tensor:
    channels = images.shape[1]
    if values is None or torch.as_tensor(values).shape != (channels,):
        raise ValueError(
            f"Expected {name} to be one number for each channel, {channels} in all, but got {values!r}. "
            "Pass mean and std of the dataset's normalization."
        )
    return torch.as_tensor(values).float().view(-1, 1, 1)


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"Expected count to be at least 1, but got {count}. Pass 1 or more.")


def _titles(targets: torch.Tensor, count: int, class_names: Sequence[str] | None) -> list[str]:
    _check_targets(targets, count)
    num_classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    if class_names is not None and (
        len(class_names) < num_classes or (targets.ndim == 2 and len(class_names) > num_classes)
    ):
        raise ValueError(
            f"Expected class_names to name each of {num_classes} classes, but got {len(class_names)} names. "
            "Pass those of the dataset: timm_accel.data.class_names(dataset)."
        )
    names = [str(label) for label in range(num_classes)] if class_names is None else _drawable(class_names)
    if targets.ndim == 1:
        return [_shorten(names[label]) for label in targets.tolist()]
    largest = targets.topk(min(2, num_classes))
    return [_soft_title(names, *pair) for pair in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)]


def _soft_title(names: Sequence[str], labels: list[int], values: list[float]) -> str:
    shares = [(names[label], f" {round(value, 2):g}") for label, value in zip(labels, values, strict=True)]
    parts = [_shorten(name, (":" if name[-1:].isdigit() else "") + share) for name, share in shares if share != " 0"]
    line = ", ".join(parts)
    return line if len(line) <= TITLE_LETTERS else ",\n".join(parts)


def _check_targets(targets: torch.Tensor, count: int) -> None:
    if not isinstance(targets, torch.Tensor):
        raise TypeError(
            f"Expected targets to be a tensor, but got {type(targets).__name__}. Pass torch.tensor(targets)."
        )
    hard = targets.ndim == 1 and not targets.is_floating_point()
    if not (hard or targets.ndim == 2) or len(targets) != count or 0 in targets.shape:
        raise ValueError(
            f"Expected targets to be integers ({count},) or soft labels ({count}, num_classes), since there are "
            f"{count} images, but got {targets.dtype} of the shape {tuple(targets.shape)}. "
            "Pass those of the same batch."
        )
    if hard and targets.min() < 0:
        raise ValueError(f"Expected targets to be labels from 0, but got {int(targets.min())}. Leave such images out.")


def _check_mixup(mixup: Mixup, targets: torch.Tensor, count: int) -> None:
    if not isinstance(mixup, Mixup):
        raise TypeError(f"Expected mixup to be timm's Mixup, but got {type(mixup).__name__}. Pass timm.data.Mixup(…).")
    if mixup.mode == "half" and not isinstance(mixup, FastCollateMixup):
        raise ValueError(
            "Expected mixup to be a FastCollateMixup for mode 'half', since timm's Mixup takes it for 'batch', but got "
            "a Mixup. Pass timm.data.FastCollateMixup(mode='half', …)."
        )
    if count % 2:
        raise ValueError(
            f"Expected images to be an even number, since Mixup needs an even batch size, but got {count}. Leave "
            "one out."
        )
    _check_targets(targets, count)
    if targets.ndim != 1 or targets.max() >= mixup.num_classes:
        got = f"the shape {tuple(targets.shape)}" if targets.ndim != 1 else f"the label {int(targets.max())}"
        raise ValueError(
            f"Expected targets to be labels below {mixup.num_classes}, the mixup's num_classes, but got {got}. "
            "Pass hard labels and the right num_classes."
        )


def _check_has_transform(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"Expected dataset to be map-style, since one image is loaded repeatedly, but got "
            f"{type(dataset).__name__}. Use plot_batch for a batch of it."
        )
    if getattr(dataset, "transform", None) is None:
        raise TypeError(
            "Expected dataset to have a transform, since the figure shows its draws, but got "
            f"{type(dataset).__name__} without one. Pass the dataset with the transform; for a Subset "
            "this is its .dataset."
        )


def _normalization(dataset: Any) -> tuple[Any, Any]:
    steps = (*getattr(dataset.transform, "transforms", ()), getattr(dataset, "device_transform", None))
    for step in steps:
        if isinstance(step, Normalize | v2.Normalize | DeviceTransform):
            return step.mean, step.std
    return None, None


def _untransformed(dataset: Any) -> Any:
    plain = copy(dataset)
    plain.transform = lambda image: image
    if hasattr(plain, "transforms"):  # torchvision stores both transforms there too
        plain.transforms = None
    return plain


def _image_and_label(sample: Any) -> tuple[Any, Any]:
    image, label, *_ = (*sample, None) if isinstance(sample, tuple | list) else (sample, None)
    return image, label


def _to_tensor(image: Any) -> torch.Tensor:
    """Return an image as a batch of one."""
    if isinstance(image, Image.Image):
        image = pil_to_tensor(image if image.mode == "L" else image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        image = torch.tensor(image)
    if not isinstance(image, torch.Tensor):
        raise TypeError(
            f"Expected the dataset to yield images, but got {type(image).__name__}. "
            "Let its transform return a tensor, an array (C, H, W) or a PIL image."
        )
    return image[None]

"""Test-time augmentation: the mean of the probabilities over several views of each image."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.transforms.functional import center_crop, five_crop

from timm_accel.messages import nearest

VIEWS = ("hflip", "vflip", "five_crop")


def check_tta(tta: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the augmentations.

    Args:
        tta: Some of ``hflip``, ``vflip`` and ``five_crop``.

    Raises:
        ValueError: A name is unknown.
    """
    names = (tta,) if isinstance(tta, str) else tuple(tta)
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"Expected tta to be some of {VIEWS}, but got {name!r}. {nearest(name, VIEWS)}")
    return names


def views_of(images: Tensor, tta: Sequence[str], size: tuple[int, int]) -> list[Tensor]:
    """Return views ``(B, C, H, W)`` of a batch, the unchanged one first; each augmentation multiplies their number.

    Args:
        images: ``(B, C, H, W)``; with ``five_crop`` larger than `size`.
        tta: The augmentations. Flips double the views; ``five_crop`` gives the center and the four corners, and its
            center may differ by one pixel from the usual crop.
        size: The size of a view, (height, width) in pixels.
    """
    views = [images]
    if "five_crop" in tta:
        views = [center_crop(images, list(size)), *five_crop(images, list(size))[:4]]
    for name, dimension in (("hflip", -1), ("vflip", -2)):
        if name in tta:
            views += [view.flip(dimension) for view in views]
    return views


def config_of_views(data_config: dict[str, Any], tta: Sequence[str]) -> dict[str, Any]:
    """Return timm's data config of the images before `views_of`; with ``five_crop`` they are not cropped.

    Raises:
        ValueError: ``five_crop`` is used, but the transform does not crop.
    """
    if "five_crop" not in tta:
        return data_config
    channels, *size = data_config["input_size"]
    uncropped = tuple(int(side / data_config["crop_pct"]) for side in size)
    if (
        any(outer <= inner for outer, inner in zip(uncropped, size, strict=True))
        or data_config["crop_mode"] == "border"
    ):
        raise ValueError(
            "Expected tta without 'five_crop' for this model, since its transform leaves no border to crop, but got "
            f"it (crop_pct={data_config['crop_pct']}, crop_mode={data_config['crop_mode']!r}). Use 'hflip'."
        )
    return {**data_config, "input_size": (channels, *uncropped), "crop_pct": 1.0}

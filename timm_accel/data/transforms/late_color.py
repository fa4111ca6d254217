"""Keep grayscale images in one channel until a step needs three: the same pixels, in less time."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation, ResizeKeepRatio
from torchvision.transforms import CenterCrop, ColorJitter, Compose, RandomHorizontalFlip, RandomVerticalFlip, Resize

_EACH_CHANNEL_ALONE = (
    RandomResizedCropAndInterpolation,
    Resize,
    ResizeKeepRatio,
    CenterCrop,
    RandomHorizontalFlip,
    RandomVerticalFlip,
)


class LateColor(Compose):
    """timm's transform with a step that converts grayscale images to RGB after those that treat each channel alone."""

    @property
    def takes_gray(self) -> bool:
        """Whether the steps are still such that a grayscale image may come: a user may have changed them."""
        for step in self.transforms:
            if isinstance(step, ToRGB | ToPlanes):
                return True
            if not _treats_each_channel_alone(step):
                return False
        return False


def color_late(transform: Compose, channels: int) -> LateColor:
    """Return timm's transform for images of which a `PrepareImage` with `keep_gray` has left some in mode ``L``.

    Resizes, crops and flips treat each channel alone, so a grayscale image becomes RGB after them. The pixels are equal
    to those of a conversion before them.

    Args:
        transform: timm's transform, whose images end as ``uint8`` tensors.
        channels: The channels of the model, 1 or 3.

    Source: ``timm.data.create_transform``.
    """
    steps = [ToPlanes(channels) if type(step) is MaybePILToTensor else step for step in transform.transforms]
    mixing = next(number for number, step in enumerate(steps) if not _treats_each_channel_alone(step))
    if channels == 3 and not isinstance(steps[mixing], ToPlanes):
        steps.insert(mixing, ToRGB())
    return LateColor(steps)


def _treats_each_channel_alone(step: Any) -> bool:
    if type(step) is ColorJitter:  # timm adds one for color_jitter=0 too, which changes nothing
        return not any((step.brightness, step.contrast, step.saturation, step.hue))
    return type(step) in _EACH_CHANNEL_ALONE


class ToRGB:
    """Convert a grayscale image to RGB; others stay as they are."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert("RGB") if image.mode == "L" else image

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ToPlanes:
    """Turn an image into a ``uint8`` tensor ``(C, H, W)``.

    A row of a channel is contiguous in memory, as in a batch; in timm's tensor the channels of a pixel are. So a batch
    of them is stacked in a fraction of the time.

    Args:
        channels: The channels of the tensor; a grayscale image is repeated in each.

    Source: ``timm.data.transforms.MaybePILToTensor``.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if image.mode == "L":
            return torch.from_numpy(np.array(image))[None].repeat(self.channels, 1, 1)
        rows = bytearray(image.tobytes("raw", "RGB;L"))  # in each row of the image first all red, then green, then blue
        return torch.frombuffer(rows, dtype=torch.uint8).view(image.height, 3, image.width).transpose(0, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels})"

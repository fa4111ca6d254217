"""The random crop of training, chosen before decoding, so that a large JPEG is decoded at a reduced scale."""

import random
from typing import Any

import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.functional import pil_modes_mapping, resized_crop

from timm_accel.data.transforms.image_size import check_size
from timm_accel.data.transforms.prepare_image import PrepareImage, turn_of

_SCALES = (8, 4, 2)  # the reduced scales of libjpeg
_ON_ITS_SIDE = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


class DraftedCrop:
    """Prepare an image and crop it at random; decode a JPEG at 1/2, 1/4 or 1/8 where the crop has enough pixels.

    The crops and the random draws are those of timm's `RandomResizedCropAndInterpolation`. Pixels differ by about 1/255
    on average, so use this only for training. Other formats are decoded at full scale.

    Args:
        crop: timm's random crop; its size, scale, ratio and interpolation are used.
        prepare: Turns an image upright and converts it.

    Source: ``PIL.Image.Image.draft``; ``timm.data.transforms.RandomResizedCropAndInterpolation``.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation, prepare: PrepareImage) -> None:
        self.crop, self.prepare, self.keep_gray = crop, prepare, prepare.keep_gray

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the crop in its final size."""
        if image.format != "JPEG":
            check_size(image.size)
            image.load()  # a TIFF is turned by it
        width, height = image.size
        if turn_of(image) in _ON_ITS_SIDE:
            width, height = height, width
        shape = torch.empty(height, width, device="meta")  # the image itself may still be rotated
        top, left, crop_height, crop_width = self.crop.get_params(shape, self.crop.scale, self.crop.ratio)
        choices = self.crop.interpolation
        interpolation = random.choice(choices) if isinstance(choices, tuple | list) else choices
        if image.format == "JPEG":
            scale = self._scale(crop_height, crop_width)
            image.draft(self.prepare.mode, (image.width // scale, image.height // scale))
        image = self.prepare(image)
        if image.size == (width, height):
            return resized_crop(image, top, left, crop_height, crop_width, self.crop.size, interpolation)
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, (left + crop_width) * x, (top + crop_height) * y)
        return image.resize(self.crop.size[::-1], pil_modes_mapping[interpolation], box=box)

    def _scale(self, height: int, width: int) -> int:
        wanted = self.crop.size
        return next((scale for scale in _SCALES if height // scale >= wanted[0] and width // scale >= wanted[1]), 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.crop}, {self.prepare})"


def take_crop(transform: Any, prepare: PrepareImage) -> DraftedCrop:
    """Take timm's random crop out of a transform, and return the `DraftedCrop` to be called before it.

    Args:
        transform: timm's training transform; its crop is removed.
        prepare: Turns an image upright and converts it.

    Raises:
        ValueError: The transform does not begin with that crop.
    """
    first = transform.transforms[0]
    if not isinstance(first, RandomResizedCropAndInterpolation):
        raise ValueError(
            "Expected draft with timm's random resized crop, since that is chosen before decoding, but got "
            f"{type(first).__name__}. Leave draft or train_crop_mode out."
        )
    del transform.transforms[0]
    return DraftedCrop(first, prepare)

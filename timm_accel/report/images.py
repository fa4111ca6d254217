"""Thumbnails of images and of tensors, as data URIs."""

import base64
import io

import torch
from PIL import Image

SIZE = 112


def thumbnail_of(image: Image.Image | torch.Tensor) -> str:
    """Return a JPEG of at most 112 by 112 pixels as a data URI.

    Args:
        image: A PIL image, or a ``uint8`` tensor ``(C, H, W)``.
    """
    if isinstance(image, torch.Tensor):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image = image.convert("RGB")
    image.thumbnail((SIZE, SIZE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

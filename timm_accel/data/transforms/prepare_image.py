"""Convert any decoded image to an upright 8-bit image in the model's mode, without clipping."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


class PrepareImage:
    """Turn an image upright, scale 16-bit and float pixels to 8 bits, and convert it to grayscale or RGB.

    It is the first transform of timm_accel's datasets. With timm's ``ImageDataset`` pass it before the others, and
    ``input_img_mode=None``. timm only calls ``convert("RGB")``, which makes a 16-bit image white (Pillow 13).

    Args:
        channels: 3 for RGB, 1 for grayscale.

    Raises:
        ValueError: `channels` is neither 1 nor 3.
        OSError: The image cannot be decoded.

    Source: ``PIL.ImageOps.exif_transpose``.
    """

    def __init__(self, channels: int = 3) -> None:
        if channels not in (1, 3):
            raise ValueError(f"Expected channels to be 1 or 3, but got {channels!r}. 1 is grayscale, 3 is color.")
        self.mode = "L" if channels == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image decoded, upright and in mode ``L`` or ``RGB``."""
        image = ImageOps.exif_transpose(image)
        if image.mode in _WIDE:
            image = _to_8_bits(image)
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct conversion
        return image.convert(self.mode) if image.mode != self.mode else image

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mode={self.mode!r})"


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale integers by the range of their type, and floats by 1, by 255, or by their largest value."""
    pixels = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        largest = float(np.nanmax(pixels, initial=0.0))
        full = 1.0 if largest <= 1 else max(255.0, largest)
    else:
        full = 65535.0 if pixels.max(initial=0) <= 65535 else 2.0**31 - 1
    scaled = np.clip(np.nan_to_num(pixels) * (255 / full), 0, 255)
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def read_image(file: Any, prepare: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Decode an image from an open binary file or from bytes, and prepare it; a PIL image is only prepared.

    Raises:
        OSError: It cannot be decoded, for any error of Pillow.
    """
    try:
        if isinstance(file, Image.Image):
            return prepare(file)
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            prepared = prepare(image)
            prepared.load()
            return prepared
    except Exception as error:  # Pillow raises a dozen kinds, SyntaxError among them
        raise OSError(str(error) or type(error).__name__) from error

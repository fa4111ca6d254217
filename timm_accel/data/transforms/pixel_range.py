"""The scale of pixels of more than 8 bits: one range for a whole dataset, never one for each image."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from timm_accel.data.transforms.image_size import check_size, open_image

PixelRange = tuple[float, float]
"""The pixel values that become 0 and 255."""

WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_UNIT = (0.0, 1.0)
_SMALL_PART = 4  # a range of which a set uses less than a quarter is not taken for its own
_BITS_PER_SAMPLE = 258  # TIFF
_LOOKED_AT, _MEASURED = 100, 1000  # images of a dataset: by their headers, and decoded
_ROWS_AT_A_TIME = 2**22  # pixels


class Values(NamedTuple):
    """The pixel values of one image of more than 8 bits; `full` is the range of its type, None where it has none."""

    path: str
    mode: str
    low: float
    high: float
    full: PixelRange | None


def check_pixel_range(pixel_range: Any) -> PixelRange:
    """Return the range as two floats.

    Args:
        pixel_range: Two rising finite numbers.

    Raises:
        ValueError: It is anything else.
    """
    try:
        low, high = (float(bound) for bound in pixel_range)
        if isfinite(low) and isfinite(high) and low < high:
            return low, high
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"Expected pixel_range to be two rising numbers, (low, high), but got {pixel_range!r}. Such as (0, 4095) for "
        "12 bits."
    )


def range_of_type(image: Image.Image) -> PixelRange | None:
    """Return the range of 16-bit pixels, that of the file's bits in a TIFF; None for 32-bit integers and floats."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
        return (0.0, 4095.0) if bits == (12,) else (0.0, 65535.0)  # Pillow 13 does not scale 12 bits
    if image.mode == "I" and image.format == "PPM":
        return 0.0, 65535.0  # Pillow 13 scales its 16 bits so
    return None


def range_for(full: PixelRange | None, pixel_range: PixelRange | None) -> PixelRange | None:
    """Return the range that becomes 0 to 255.

    Args:
        full: The range of the image's type.
        pixel_range: That of the dataset. Floats from 0 to 1 say nothing about images of 16 bits beside them.
    """
    return full if pixel_range is None or (full is not None and pixel_range == _UNIT) else pixel_range


def to_8_bits(image: Image.Image, pixel_range: PixelRange | None) -> Image.Image:
    """Return a decoded image of more than 8 bits as one of 8 bits; pixels outside the range are clipped.

    Args:
        image: An image of one of `WIDE_MODES`.
        pixel_range: The range of the dataset; None for that of the type.

    Raises:
        OSError: A pixel is not finite, or there is no range.
    """
    values = values_of(image, "")
    if (wanted := range_for(values.full, pixel_range)) is None:
        raise OSError(
            f"32-bit pixels from {values.low:g} to {values.high:g} have no scale: pass pixel_range=(low, high), the "
            "range of all images"
        )
    low, factor = wanted[0], 255 / (wanted[1] - wanted[0])
    pixels = np.empty((image.height, image.width), dtype=np.uint8)
    wide, rows = np.asarray(image), max(1, _ROWS_AT_A_TIME // image.width)
    for start in range(0, image.height, rows):
        part = wide[start : start + rows].astype(np.float64)
        pixels[start : start + rows] = np.clip(np.round((part - low) * factor), 0, 255)
    return Image.fromarray(pixels)


def values_of(image: Image.Image, path: str) -> Values:
    """Return the smallest and largest pixel of a decoded image.

    Args:
        image: An image of one of `WIDE_MODES`.
        path: Its name.

    Raises:
        OSError: A pixel is not finite.
    """
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())  # NaN if a pixel is NaN
    if not (isfinite(low) and isfinite(high)):
        raise OSError("pixels that are NaN or infinite: replace them")
    return Values(path, image.mode, low, high, range_of_type(image))


def settled_pixel_range(readers: Iterable[Any], pixel_range: Any = None) -> PixelRange | None:
    """Return the given range, or the one that a sample of 32-bit images agrees on; None where there are none.

    Args:
        readers: The readers of a dataset, for training and evaluation; those without indices are not looked at.
        pixel_range: The range that was given.

    Raises:
        ValueError: The range is none, or the images do not agree on one.
    """
    if pixel_range is not None:
        return check_pixel_range(pixel_range)
    indexed = [reader for reader in readers if hasattr(reader, "__getitem__") and hasattr(reader, "__len__")]
    if not any(range_of_type(image) is None for image, _ in _wide_images(indexed, _LOOKED_AT)):
        return None
    found = []
    for image, path in _wide_images(indexed, _MEASURED):
        try:
            check_size(image.size)
            image.load()
            found.append(values_of(image, path))
        except Exception:  # it is unreadable, and found as such when it is used
            continue
    return agreed_range(found)


def _wide_images(readers: Sequence[Any], number: int) -> Iterator[tuple[Image.Image, str]]:
    """Yield an evenly spread sample of the images of more than 8 bits, opened but not decoded, and their names."""
    for reader in readers:
        reader = copy(reader)
        if hasattr(reader, "cache_tarfiles"):
            reader.cache_tarfiles = False  # loader workers would share an open file of timm's reader (1.0.31)
        for index in np.unique(np.linspace(0, len(reader) - 1, min(number, len(reader))).astype(int)).tolist():
            try:
                file = reader[index][0]
                image = file if isinstance(file, Image.Image) else open_image(file)
                if image.mode in WIDE_MODES:
                    yield image, reader.filename(index, absolute=True)
                if hasattr(file, "read"):
                    file.close()
            except Exception:  # it is unreadable, and found as such when it is used
                continue


def agreed_range(found: Sequence[Values]) -> PixelRange | None:
    """Return the range that all images of 32 bits agree on; None where there are none.

    Args:
        found: The values of the images.

    Raises:
        ValueError: They do not agree on one; the message proposes the range that was measured.
    """
    wide = [image for image in found if image.full is None]
    if not wide:
        return None
    low, high = min(image.low for image in wide), max(image.high for image in wide)
    modes = {image.mode for image in wide}
    mixed = len(modes) > 1 or len(wide) < len(found)
    if modes == {"F"} and low >= 0 and high <= 1:
        return _UNIT
    if low >= 0 and not mixed and not any(image.low < image.high <= 1 for image in wide):
        for full in (255.0,) if modes == {"F"} else (255.0, 65535.0):
            if full / _SMALL_PART < high <= full:
                return 0.0, full
    first = max(wide, key=lambda image: image.high)
    raise ValueError(
        f"Expected pixel_range beside images of 32 bits, since all images need one scale, but got None, and pixels "
        f"from {low:g} to {high:g} in {len(wide)} images, such as {first.path!r}. Pass the range of all images, such "
        f"as pixel_range={in_words(proposed_range(low, high, integer='F' not in modes))}."
    )


def proposed_range(low: float, high: float, integer: bool = True) -> PixelRange:
    """Return a range for pixels from `low` to `high`: all values of so many bits, or those measured for floats."""
    low = min(low, 0.0)
    if integer and low == 0:
        return 0.0, float(2 ** max(1, int(high).bit_length()) - 1)
    return low, high if high > low else low + 1


def uses_small_part(high: float, full: PixelRange) -> bool:
    """Return whether pixels up to `high` use less than a quarter of their range."""
    return 0 < high <= full[1] / _SMALL_PART


def in_words(pixel_range: PixelRange) -> str:
    """Return the range as it is written in Python: ``(0, 4095)``."""
    return f"({pixel_range[0]:.10g}, {pixel_range[1]:.10g})"

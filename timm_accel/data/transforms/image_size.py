"""A bound on what an image may become when it is decoded and resized, so that one file cannot fill the memory."""

import io
import warnings
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

from PIL import Image, UnidentifiedImageError
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import Resize
from torchvision.transforms.v2 import Resize as ResizeV2

_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # brands of HEIF, at byte 8
_FILTERS = Lock()  # those of warnings belong to all threads


def max_pixels() -> float:
    """Return the largest number of pixels of an image: 1.5 times Pillow's limit, where that only warns."""
    return float("inf") if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS * 3 // 2


def open_image(file: Any) -> Image.Image:
    """Open an image without decoding it.

    Args:
        file: An open binary file, or bytes.

    Raises:
        OSError: It has more pixels than the bound, is empty, or is of no kind that Pillow knows.
        Exception: Pillow cannot open it.
    """
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        return Image.open(opened)
    except Image.DecompressionBombError as error:
        raise _too_large("got more") from error
    except UnidentifiedImageError as error:  # its message is the file object's, with a memory address
        opened.seek(0)
        raise UnidentifiedImageError(_kind_of(opened.read(12))) from error


def _kind_of(start: bytes) -> str:
    """Return what a file is that Pillow does not know, by its first 12 bytes."""
    if not start:
        return "an empty file"
    if start[4:8] == b"ftyp" and start[8:] in _HEIF:  # phones write it, and some programs call it .jpg
        return "a HEIF photo, which needs the package pillow-heif and its register_heif_opener()"
    return "no image of a kind that Pillow knows"


def ignoring_size_warnings(function: Callable[[], Any]) -> Any:
    """Call a function; if warnings are errors, call it again without Pillow's warning of large images.

    Args:
        function: Opens or decodes an image, from the start of its file. Images beyond our bound are refused anyway.
    """
    try:
        return function()
    except Image.DecompressionBombWarning:
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return function()


def check_size(size: tuple[int, int]) -> None:
    """Raise an `OSError` for an image without pixels, or with more than the bound.

    Args:
        size: Its (width, height), known before it is decoded.
    """
    width, height = size
    if width < 1 or height < 1:
        raise OSError(f"no pixels: the image has a size of {width} x {height}")
    if width * height > max_pixels():
        raise _too_large(f"got {width} x {height}")


def check_resized(size: tuple[int, int], transform: Any) -> None:
    """Raise an `OSError` for an image that a transform would resize to more pixels than the bound, or to none.

    Args:
        size: Its (width, height).
        transform: The transform; the resizes of torchvision and timm among its parts are followed.
    """
    for width, height in _resized(size, transform):
        if round(width) < 1 or round(height) < 1:
            raise OSError(f"a side of no pixels: {size[0]} x {size[1]} is resized to {width:.2g} x {height:.2g}")
        if width * height > max_pixels():
            raise _too_large(f"got {size[0]} x {size[1]}, which is resized to {width:.0f} x {height:.0f}")


def _resized(size: tuple[float, float], transform: Any) -> Iterator[tuple[float, float]]:
    """Yield the (width, height) after each part of a transform that resizes an image without cropping it first."""
    for part in getattr(transform, "transforms", [transform]):
        if isinstance(part, ResizeKeepRatio):
            ratios = sorted(old / new for old, new in zip(size, part.size[::-1], strict=True))
            factor = ratios[1] * part.longest + ratios[0] * (1 - part.longest)
        elif isinstance(part, Resize | ResizeV2) and (side := _short_side(part)) is not None:
            factor = min(size) / side
        else:
            return  # a crop comes first, or the size is fixed
        yield (size := (size[0] / factor, size[1] / factor))


def _short_side(resize: Any) -> int | None:
    size = resize.size
    if isinstance(size, int):
        return size
    return size[0] if size is not None and len(size) == 1 else None


def _too_large(what: str) -> OSError:
    return OSError(
        f"an image of at most {max_pixels():,.0f} pixels was expected, but {what}: crop or shrink it, or raise "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )

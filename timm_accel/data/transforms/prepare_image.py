"""Convert any decoded image to an upright 8-bit image in the model's mode, without clipping."""

from collections.abc import Callable
from typing import Any

from PIL import ExifTags, Image

from timm_accel.data.transforms.image_size import check_resized, check_size, ignoring_size_warnings, open_image
from timm_accel.data.transforms.pixel_range import WIDE_MODES, PixelRange, check_pixel_range, to_8_bits

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PrepareImage:
    """Turn an image upright, scale 16-bit and 32-bit pixels to 8 bits, and convert it to grayscale or RGB.

    It is the first transform of timm_accel's datasets. With timm's ``ImageDataset`` pass it before the others, and
    ``input_img_mode=None``. timm only calls ``convert("RGB")``, which makes a 16-bit image white (Pillow 13).

    Args:
        channels: 3 for RGB, 1 for grayscale.
        pixel_range: The values (low, high) that become 0 and 255 in images of more than 8 bits; None for the range of
            16 bits. Images of 32-bit integers or floats need it.
        keep_gray: Whether grayscale images stay grayscale with 3 channels, for a transform that converts them later.
            `read_image` converts them for any other.

    Raises:
        ValueError: `channels` is neither 1 nor 3, or `pixel_range` is not two rising numbers.
        OSError: The image cannot be decoded, has no scale, or has more than 1.5 times ``PIL.Image.MAX_IMAGE_PIXELS``.

    Source: ``PIL.ImageOps.exif_transpose``.
    """

    def __init__(self, channels: int = 3, pixel_range: PixelRange | None = None, *, keep_gray: bool = False) -> None:
        if channels not in (1, 3):
            raise ValueError(f"Expected channels to be 1 or 3, but got {channels!r}. 1 is grayscale, 3 is color.")
        self.mode = "L" if channels == 1 else "RGB"
        self.pixel_range = None if pixel_range is None else check_pixel_range(pixel_range)
        self.keep_gray = keep_gray and channels == 3

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image decoded, upright and in mode ``L`` or ``RGB``; one that is so already is returned itself."""
        check_size(image.size)
        image.load()
        turn, prepared = turn_of(image), image
        if image.mode in WIDE_MODES:
            prepared = to_8_bits(image, self.pixel_range)
        elif image.mode == "P" and "transparency" in image.info:
            prepared = image.convert("RGBA")  # Pillow warns about the direct conversion
        if prepared.mode != self.mode and not (self.keep_gray and prepared.mode == "L"):
            prepared = prepared.convert(self.mode)
        return prepared if turn is None else prepared.transpose(turn)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mode={self.mode!r}, pixel_range={self.pixel_range})"


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how EXIF asks to turn an image; None for not at all, and where its EXIF cannot be read.

    Pillow 13 turns a TIFF itself when it is decoded, and then this is None.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises a dozen kinds for a broken EXIF, which is no reason to refuse the pixels
        return None


def read_image(file: Any, prepare: Callable[[Image.Image], Image.Image], transform: Any = None) -> Image.Image:
    """Decode an image from an open binary file or from bytes, and prepare it; a PIL image is only prepared.

    Args:
        file: The file, the bytes or the image.
        prepare: Prepares it.
        transform: The transform that follows; an image that it would resize beyond the bound is refused. Only one that
            `color_late` made gets a grayscale image for `keep_gray`.

    Raises:
        OSError: It cannot be decoded, for any error of Pillow, or it is or would become too large.
    """
    try:
        prepared: Image.Image = ignoring_size_warnings(lambda: _decoded(file, prepare))
        check_resized(prepared.size, transform)
        if prepared.mode != "L" or getattr(transform, "takes_gray", False):
            return prepared
        return prepared.convert("RGB") if getattr(prepare, "keep_gray", False) else prepared  # the transform of a user
    except Exception as error:  # Pillow raises a dozen kinds, SyntaxError among them
        raise OSError(str(error) or type(error).__name__) from error


def _decoded(file: Any, prepare: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if isinstance(file, Image.Image):
        prepared = prepare(file)
        return prepared.copy() if prepared is file else prepared  # a transform may draw on it
    with open_image(file) as image:
        prepared = prepare(image)
        prepared.load()
        return prepared

"""The pixel values of images of more than 8 bits, and the `pixel_range` that they need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from timm_accel.messages import counted

if TYPE_CHECKING:
    from timm_accel.data.transforms.pixel_range import PixelRange, Values


@dataclass(frozen=True)
class WidePixels:
    """The pixel values of the images of more than 8 bits of one split.

    Args:
        low: The smallest value.
        high: The largest value.
        pixel_range: The values that become black and white; None where the images do not agree on a scale.
        problem: What is wrong with that scale, as a sentence; it is empty if nothing is wrong.
    """

    low: float
    high: float
    pixel_range: tuple[float, float] | None
    problem: str = ""


def wide_pixels(found: "Sequence[Values]", pixel_range: "PixelRange | None") -> WidePixels | None:
    """Return the values of all images, and what is wrong with their scale; None if there are none.

    Args:
        found: The values of the images of more than 8 bits.
        pixel_range: The range of the dataset; None for that of the type.
    """
    from timm_accel.data.transforms.pixel_range import agreed_range, in_words, range_for, uses_small_part

    if not found:
        return None
    low, high = min(image.low for image in found), max(image.high for image in found)
    scale: PixelRange | None = None
    try:
        agreed = pixel_range or agreed_range(found)
        scales = [range_for(image.full, agreed) for image in found]
        scale = max(each for each in scales if each is not None)
    except ValueError:
        agreed = scale = None
    values = f"the pixels of {counted(len(found), 'image')} of more than 8 bits are from {low:g} to {high:g}"
    proposal = in_words(_proposal(found))
    problem = ""
    if scale is None:
        problem = f"{values}, and the images do not agree on a scale: pass pixel_range, such as {proposal}."
    elif outside := sum(
        image.low < each[0] or image.high > each[1] for image, each in zip(found, scales, strict=True) if each
    ):
        problem = (
            f"{values}, and {outside:,} of them have pixels outside pixel_range={in_words(scale)}, which are clipped: "
            f"pass pixel_range={proposal} to keep them."
        )
    elif uses_small_part(high, scale):
        problem = (
            f"{values}, a small part of {in_words(scale)}, so that they are dark: pass pixel_range={proposal} to "
            "create_datasets."
        )
    return WidePixels(low, high, scale, problem)


def _proposal(found: "Sequence[Values]") -> "PixelRange":
    from timm_accel.data.transforms.pixel_range import proposed_range

    low, high = min(image.low for image in found), max(image.high for image in found)
    return proposed_range(low, high, integer=all(image.mode != "F" for image in found))

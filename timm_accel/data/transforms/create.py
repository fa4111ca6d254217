"""Create timm's transforms; check the input size and the augmentation policy, and fix one operation."""

import re
from collections.abc import Iterator
from inspect import signature
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment, posterize

from timm_accel.messages import nearest

_NUMBERS = {
    "rand": ("m", "n", "p", "mstd", "mmax", "inc"),
    "augmix": ("m", "w", "d", "a", "b", "mstd"),
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), ("mstd",)),
}
_FRACTIONS = ("p", "a", "mstd")  # the other numbers are integers
_OPERATION_SETS = ("weights", "3a", "3aw")  # written after "t"


def create_training_transform(auto_augment: str | None, **options: Any) -> Any:
    """Create timm's training transform.

    Args:
        auto_augment: timm's name of a policy, such as ``rand-m9-mstd0.5-inc1``; None for none.
        **options: Further options of ``timm.data.create_transform``.

    Raises:
        ValueError: An option or a part of the policy is unknown.

    Source: ``timm.data.create_transform``.
    """
    for name in options:
        if name not in (known := signature(create_transform).parameters):
            raise ValueError(f"Expected options of timm's create_transform, but got {name!r}. {nearest(name, known)}")
    if auto_augment is not None:
        check_policy(auto_augment)
    transform = create_transform(is_training=True, auto_augment=auto_augment, **options)
    for operation in _operations(transform):
        if operation.aug_fn is posterize:
            operation.aug_fn = posterize_any
    return transform


def create_policy(name: str, image_size: tuple[int, int]) -> Any:
    """Return timm's transform of an augmentation policy alone, from a PIL image to another.

    Args:
        name: timm's name of the policy, such as ``rand-m9-mstd0.5-inc1``.
        image_size: (height, width) of the images in pixels, which bounds the translations.

    Raises:
        ValueError: A part of the policy is unknown.
    """
    steps = create_training_transform(name, input_size=image_size).transforms
    return next(step for step in steps if isinstance(step, AutoAugment | RandAugment | AugMixAugment))


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels from one number or a pair.

    Raises:
        ValueError: `image_size` is neither, or a side is below 1.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(isinstance(side, int) and side >= 1 for side in size)
    ):
        raise ValueError(
            f"Expected image_size to be a number of pixels of at least 1, or (height, width), but got {image_size!r}. "
            "Usual sizes are 128 to 384."
        )
    return size[0], size[1]


def check_policy(policy: str) -> None:
    """Raise a `ValueError` that names the part of an augmentation policy that timm does not know."""
    family, *parts = str(policy).split("-")
    remedy = "Pass one such as 'rand-m7-mstd0.5-inc1', or None."
    if family not in _NUMBERS:
        raise ValueError(
            f"Expected auto_augment to begin with {', '.join(_NUMBERS)}, but got {policy!r}. "
            f"{nearest(family, _NUMBERS)} {remedy}"
        )
    for part in parts:
        key = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        named_set = family == "rand" and part[:1] == "t" and part[1:] in _OPERATION_SETS
        if key is not None and key[1] in _NUMBERS[family] and "." in key[2] and key[1] not in _FRACTIONS:
            raise ValueError(
                f"Expected auto_augment to have an integer after {key[1]!r}, but got {policy!r}, whose part is "
                f"{part!r}. {remedy}"
            )
        if not named_set and (key is None or key[1] not in _NUMBERS[family]):
            known = ", ".join(_NUMBERS[family]) + (", t" if family == "rand" else "")
            raise ValueError(
                f"Expected each part of auto_augment to be a letter code and a number, but got {policy!r}, whose part "
                f"{part!r} is none. Parts of {family}: {known}. {remedy}"
            )


def posterize_any(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """Posterize an image; with 0 bits the result is black.

    The strongest level of timm's operation (1.0.31) keeps 0 bits. Pillow 13 raises an error for that, which would stop
    a run with ``rand-m9-mstd0.5-inc1``.
    """
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return posterize(image, bits_to_keep, **options)


def _operations(transform: Any) -> Iterator[AugmentOp]:
    for part in getattr(transform, "transforms", []):
        if isinstance(part, RandAugment | AugMixAugment):
            yield from part.ops
        elif isinstance(part, AutoAugment):
            yield from (operation for line in part.policy for operation in line)

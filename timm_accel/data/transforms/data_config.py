"""Check the entries of a data config: the mean and std of the normalization, and the crop of evaluation."""

from typing import Any

from timm.data.transforms import _str_to_pil_interpolation

from timm_accel.messages import nearest

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = tuple(_str_to_pil_interpolation)


def check_mean_and_std(mean: Any, std: Any, where: str = "") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the std of each channel.

    Args:
        mean: The mean of each channel, on a scale from 0 to 1.
        std: The standard deviation of each channel, on the same scale.
        where: Where they were found, for the message, such as ``" in 'runs/first'"``.

    Raises:
        ValueError: A number is out of range, or their lengths differ.
    """
    found = _numbers(mean), _numbers(std)
    for name, values, numbers in zip(("mean", "std"), (mean, std), found, strict=True):
        low = "above 0" if name == "std" else "from 0"
        if not numbers or not all(0 < each <= 1 or (each == 0 and name == "mean") for each in numbers):
            raise ValueError(
                f"Expected {name}{where} to have a number {low} to 1 for each channel, since pixels are scaled to 0 to "
                f"1, but got {values!r}. Divide those of pixels up to 255 by 255."
            )
    if len(found[0]) != len(found[1]):
        raise ValueError(
            f"Expected mean and std{where} to be of the same length, but got {mean!r} and {std!r}. Pass one number for "
            "each channel."
        )
    return found


def _numbers(values: Any) -> tuple[float, ...]:
    """Return the numbers of a list, an array or a tensor; none where it is something else."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return ()


def check_crop(crop_pct: Any, crop_mode: Any, interpolation: Any, where: str = "") -> None:
    """Raise an error unless timm's evaluation transform takes these.

    Args:
        crop_pct: The share of the resized image that is kept; above 1 it is padded, as for some models of timm.
        crop_mode: How evaluation crops.
        interpolation: The interpolation of the resize.
        where: Where they were found, for the message.

    Raises:
        ValueError: One of them is out of range or unknown.
    """
    if isinstance(crop_pct, bool) or not isinstance(crop_pct, int | float) or not 0.1 <= crop_pct <= 2:
        raise ValueError(
            f"Expected crop_pct{where} to be a share from 0.1 to 2, but got {crop_pct!r}. timm's default is 0.875."
        )
    for name, value, known in (
        ("crop_mode", crop_mode, CROP_MODES),
        ("interpolation", interpolation, INTERPOLATIONS),
    ):
        if value not in known:
            raise ValueError(f"Expected {name}{where} to be one of timm's, but got {value!r}. {nearest(value, known)}")

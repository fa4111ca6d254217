"""Check what ``config.json`` and the metadata of exported files say, before anything is computed with it."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from timm_accel.data.transforms.data_config import check_crop, check_mean_and_std
from timm_accel.data.transforms.pixel_range import check_pixel_range

MAX_SIDE = 16_384
"""The largest height or width of a model's input in pixels."""


def check_saved_config(config: Mapping[str, Any], where: str) -> None:
    """Raise a `ValueError` for an entry of ``config.json`` that no model can have.

    Args:
        config: The content of the file; entries that are missing or None are not checked.
        where: The file, for the message: its path in quotes.
    """
    entries = {
        "architecture": ("a name of timm", _is_text),
        "num_classes": ("an integer of at least 0", lambda value: _is_integer(value) and value >= 0),
        "temperature": ("a positive number", _is_positive),
        "multi_label": ("true or false", lambda value: isinstance(value, bool)),
        "head": ("'linear', 'mlp' or 'custom'", lambda value: value in ("linear", "mlp", "custom")),
        "pretrained_cfg": ("a map of names and values", lambda value: isinstance(value, Mapping)),
        "model_args": ("a map of names and values", lambda value: isinstance(value, Mapping)),
        "note": ("text", _is_text),
    }
    for name, (wanted, is_right) in entries.items():
        if (value := config.get(name)) is not None and not is_right(value):
            raise _wrong(name, where, wanted, value)
    check_label_names(config.get("label_names"), config.get("num_classes"), where)
    check_data_config({**(config.get("pretrained_cfg") or {}), "pixel_range": config.get("pixel_range")}, where)


def check_label_names(names: Any, num_classes: Any, where: str) -> None:
    """Raise a `ValueError` unless the names are None, or a list with another text for each class."""
    if names is None:
        return
    if not isinstance(names, list | tuple) or not all(map(_is_text, names)):
        raise _wrong("label_names", where, "a list of texts", names)
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise _wrong("label_names", where, "another name for each class", f"{twice} twice")
    if _is_integer(num_classes) and len(names) != num_classes:
        raise _wrong("label_names", where, f"as many class names as the model's {num_classes} outputs", len(names))


def check_data_config(config: Mapping[str, Any], where: str) -> None:
    """Raise a `ValueError` for an entry of timm's data config that is out of range; those that are None may be."""
    size = config.get("input_size")
    if size is not None:
        is_right = isinstance(size, list | tuple) and len(size) == 3 and all(_is_integer(each) for each in size)
        if not is_right or not (1 <= size[0] <= 1024 and all(1 <= side <= MAX_SIDE for side in size[1:])):
            raise _wrong("input_size", where, f"(C, H, W) with sides from 1 to {MAX_SIDE} pixels", size)
    mean, std = config.get("mean"), config.get("std")
    if mean is not None or std is not None:
        found, _ = check_mean_and_std(mean, std, f" in {where}")
        channels = 3 if size is None else size[0]
        if len(found) not in (1, 3, channels):
            raise _wrong("mean", where, f"a number for each of {channels} channels", mean)
    defaults = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
    given = {name: default if config.get(name) in (None, "") else config[name] for name, default in defaults.items()}
    check_crop(**given, where=f" in {where}")
    if config.get("pixel_range") is not None:
        try:
            check_pixel_range(config["pixel_range"])
        except ValueError as error:
            raise _wrong("pixel_range", where, "two rising numbers", config["pixel_range"]) from error


def _wrong(name: str, where: str, wanted: str, value: Any) -> ValueError:
    text = repr(value)
    shown = text if len(text) <= 100 else f"{text[:100]}…"
    return ValueError(f"Expected {name} in {where} to be {wanted}, but got {shown}. Save or export the model again.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0

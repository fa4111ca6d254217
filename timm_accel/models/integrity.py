"""Whether saved weights are as they were saved: ``config.json`` has the size and SHA-256 of the weights, and its own.

Folders without the entry ``integrity``, such as timm's, are not compared. The entries of every config are checked, and
so is the metadata of exported files, before anything is computed with them.
"""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from timm_accel.data.transforms.data_config import check_crop, check_mean_and_std
from timm_accel.data.transforms.pixel_range import check_pixel_range
from timm_accel.messages import one_line, shortened
from timm_accel.states.manifest import digest_of, digest_of_file

WEIGHTS_FILE = "model.safetensors"
"""The file of the weights in a folder of weights."""
CONFIG_FILE = "config.json"
"""The file beside it, which timm and we read: architecture, classes, preprocessing, checksums."""
INTEGRITY = "integrity"
_ON_PURPOSE = f"Use a copy of the folder, or, after a change on purpose, remove {INTEGRITY!r} from"


def signed_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.json`` for the weights in a folder, with their size and SHA-256 and its own."""
    weights = folder / WEIGHTS_FILE
    entry = {"size": weights.stat().st_size, "sha256": digest_of_file(weights)}
    config = {**config, INTEGRITY: entry}
    return {**config, INTEGRITY: {**entry, "config_sha256": _config_digest(config)}}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        ValueError: It is not JSON, not an object, or not as it was saved.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of a byte that is not UTF-8
        raise ValueError(
            f"Expected {CONFIG_FILE} to be JSON, but got {str(path)!r} ({one_line(error)}). Copy or save it again."
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"Expected {CONFIG_FILE} to hold names with values, but got {str(path)!r} with a "
            f"{type(config).__name__}. Copy or save it again."
        )
    if INTEGRITY in config and _saved(config, "config_sha256") != _config_digest(config):
        raise ValueError(
            f"Expected {CONFIG_FILE} to be as it was saved, but got {str(path)!r}, which has changed since (its "
            f"SHA-256 differs). {_ON_PURPOSE} it."
        )
    check_saved_config(config, repr(str(path)))
    return config


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare the weights with what their config holds about them.

    Args:
        folder: The folder of both.
        config: The content of ``config.json``.

    Raises:
        ValueError: The weights are not those that were saved with this config.
    """
    if INTEGRITY not in config:
        return
    path = folder / WEIGHTS_FILE
    size, found = _saved(config, "size"), path.stat().st_size if path.is_file() else None
    if found is None:
        wrong = f"to be complete, but {str(path)!r} is missing"
    elif found != size:
        wrong = f"to be complete, but got {str(path)!r} of {found} bytes instead of {size}"
    elif digest_of_file(path) != _saved(config, "sha256"):
        wrong = f"to be as it was saved, but got {str(path)!r}, which has changed since (its SHA-256 differs)"
    else:
        return
    raise ValueError(f"Expected {WEIGHTS_FILE} {wrong}. {_ON_PURPOSE} {CONFIG_FILE}.")


def _saved(config: Mapping[str, Any], name: str) -> Any:
    return config[INTEGRITY].get(name) if isinstance(config[INTEGRITY], dict) else None


def _config_digest(config: Mapping[str, Any]) -> str:
    entry = config[INTEGRITY] if isinstance(config[INTEGRITY], dict) else {}
    entry = {name: value for name, value in entry.items() if name != "config_sha256"}
    return digest_of({**config, INTEGRITY: entry})


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
    shown = shortened(value, 100)
    return ValueError(f"Expected {name} in {where} to be {wanted}, but got {shown}. Save or export the model again.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0

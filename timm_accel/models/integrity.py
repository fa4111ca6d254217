"""Whether saved weights are as they were saved: ``config.json`` has the size and SHA-256 of the weights, and its own.

Folders without the entry ``integrity``, such as timm's, are not checked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_accel.messages import one_line
from timm_accel.states.manifest import digest_of

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
INTEGRITY = "integrity"
_ON_PURPOSE = f"Use a copy of the folder, or, after a change on purpose, remove {INTEGRITY!r} from"


def signed_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.json`` for the weights in a folder, with their size and SHA-256 and its own."""
    weights = folder / WEIGHTS_FILE
    entry = {"size": weights.stat().st_size, "sha256": _digest(weights)}
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
    elif _digest(path) != _saved(config, "sha256"):
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


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

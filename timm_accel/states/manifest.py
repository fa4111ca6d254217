"""The manifest of a state: what it must hold, and the digest that covers it, so that one edited number is noticed."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm_accel.messages import shortened

FORMAT = 2  # 1 had no digest, no parts, and no milestone in the folder's name
DIGEST = "sha256"


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values, whatever the order of their names and the spaces between them."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _integer(value: Any) -> bool:
    return type(value) is int and value >= 0


def _positive(value: Any) -> bool:
    return type(value) is int and value >= 1


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _file(item: tuple[str, Any]) -> bool:
    name, value = item
    is_pair = Path(name).name == name and isinstance(value, list) and len(value) == 2
    return is_pair and _integer(value[0]) and _text(value[1]) and bool(re.fullmatch("[0-9a-f]{64}", value[1]))


_PROGRESS: dict[str, Callable[[Any], bool]] = {
    "epoch": _integer,
    "batch": _integer,
    "stage": lambda value: value in ("train", "evaluate", "end"),
    "learning_rate": _number,
}
_RUN: dict[str, Callable[[Any], bool]] = {
    name: lambda value: isinstance(value, dict) for name in ("tensors", "optimizer", "recipe")
}
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "versions": lambda value: isinstance(value, dict) and all(map(_text, value.values())),
    "milestone": lambda value: isinstance(value, bool),
    "scheduler": _text,
    "stopped": _or_none(_text),
    "progress": lambda value: _fault(value, _PROGRESS) is None and value.keys() == _PROGRESS.keys(),
    "num_updates": _integer,
    "num_processes": _positive,
    "batch_size": _positive,
    "accumulation": _positive,
    "images": _or_none(_integer),
    "num_epochs": _positive,
    "updates_per_epoch": _integer,
    "max_num_train_steps": _or_none(_integer),
    "mixed_precision": _or_none(_text),
    "run": lambda value: _fault(value, _RUN) is None,
    "files": lambda value: isinstance(value, dict) and all(map(_file, value.items())),
}


def _data(value: Any) -> bool:
    """Whether these are the values of `Listing.about` by what the data are for; states of older versions have none."""
    fields = {"digest": _text, "images": _or_none(_integer), "root": _text}
    return isinstance(value, dict) and all(_fault(each, fields) is None for each in value.values())


def _fault(content: Any, fields: Mapping[str, Callable[[Any], bool]]) -> str | None:
    """Return the first field that is missing or of another kind, as a part of a sentence; None where all are right."""
    if not isinstance(content, dict):
        return f"is {type(content).__name__} instead of an object"
    for name, is_right in fields.items():
        if name not in content:
            return f"has no {name!r}"
        if not is_right(content[name]):
            return f"has {shortened(content[name], 60)} under {name!r}"
    return None


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with the digest of all other fields."""
    rest = json.loads(json.dumps({name: value for name, value in content.items() if name != DIGEST}))
    return {**rest, DIGEST: digest_of(rest)}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        ValueError: It is not as it was written; the message is a part of a sentence, such as "has no 'run'".
    """
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"cannot be read ({' '.join(str(error).split())[:120]})") from error
    if fault := _fault(manifest, {"format": _positive}):
        raise ValueError(fault)
    if manifest["format"] > FORMAT:
        return manifest
    rest = {name: value for name, value in manifest.items() if name != DIGEST}
    is_signed = manifest["format"] > 1 or DIGEST in manifest
    if is_signed and manifest.get(DIGEST) != digest_of(rest):
        raise ValueError("has changed since it was written (its SHA-256 differs)")
    if fault := _fault({"data": {}, **manifest}, {**_FIELDS, "data": _data}):
        raise ValueError(fault)
    return manifest

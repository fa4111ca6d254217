"""Arrays in a file of the user's cache: what is damaged or of other settings counts as missing. There is no pickle."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from platformdirs import user_cache_dir

from timm_accel.atomic import atomic_write

_DIGEST_SIZE = hashlib.sha256().digest_size


def cache_file(kind: str, place: bytes, folder: str | Path | None = None) -> Path:
    """Return the file for what lies at a place.

    Args:
        kind: The name of the folder in the user's cache directory.
        place: The absolute path of the data.
        folder: The folder of the file; None for the one in the user's cache directory.
    """
    parent = Path(user_cache_dir("timm_accel"), kind) if folder is None else Path(folder)
    return parent / f"{hashlib.sha256(place).hexdigest()}.index"


def read_arrays(file: Path, about: str) -> dict[str, np.ndarray] | None:
    """Return the arrays of a file; None when it is missing, damaged or of other settings.

    Args:
        file: The file.
        about: The settings that it was written with.
    """
    try:
        with open(file, "rb") as opened:
            digest, content = opened.read(_DIGEST_SIZE), opened.read()
    except OSError:
        return None
    if _digest(about, content) != digest:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def write_arrays(file: Path, about: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically; it is no error when the file cannot be written.

    Args:
        file: The file.
        about: The settings that the arrays depend on.
        arrays: The arrays, none of objects.
    """
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    try:
        with atomic_write(file, shared=True) as unfinished, open(unfinished, "wb") as opened:
            opened.write(_digest(about, content.getvalue()))
            opened.write(content.getvalue())
    except OSError:
        return  # the next start makes the arrays again


def _digest(about: str, content: bytes) -> bytes:
    digest = hashlib.sha256(about.encode())
    digest.update(content)
    return digest.digest()

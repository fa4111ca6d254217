"""The images behind scores: which of them are looked at, and their pixels, read again from the data."""

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from timm_accel.data.transforms.prepare_image import PrepareImage, read_image
from timm_accel.predict.scores import Scores


def highest_losses(scores: Scores, count: int) -> list[int]:
    """Return the indices of the images with the highest losses, the highest first."""
    return scores.losses.argsort(descending=True, stable=True)[:count].tolist()


def is_listed(reader: Any) -> bool:
    """Return whether a reader tells the path of each image; that of a stream does not."""
    return hasattr(reader, "filename") and not hasattr(reader, "share")


def images_of(paths: Sequence[str], reader: Any, prepare: PrepareImage) -> Iterator[Image.Image | None]:
    """Yield the image of each path, upright and in 8 bits; None if it is not in the data or cannot be read.

    Args:
        paths: Paths as in `Scores.paths`.
        reader: A timm reader of these images; None if there is none.
        prepare: Decodes an image as training does.
    """
    numbers: dict[str, int] = {}
    if reader is not None:
        numbers = {reader.filename(number, absolute=True): number for number in range(len(reader))}
    for path in paths:
        yield _read(reader, numbers[path], prepare) if path in numbers else None


def _read(reader: Any, number: int, prepare: PrepareImage) -> Image.Image | None:
    try:
        file, _ = reader[number]
        try:
            return read_image(file, prepare)
        finally:
            if hasattr(file, "read"):
                file.close()
    except OSError:
        return None

"""Write images that decode and compress about as photographs do: smooth noise."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


def photo(draws: np.random.Generator, size: tuple[int, ...], blur: float = 2) -> Image.Image:
    """Return a smooth random image of (height, width, 3) pixels, or of (height, width) in grayscale."""
    return Image.fromarray(draws.integers(0, 255, size, dtype=np.uint8)).filter(ImageFilter.GaussianBlur(blur))


def write_photos(
    folder: Path, count: int, size: tuple[int, ...], *, blur: float = 2, ending: str = "jpg", quality: int = 90
) -> Path:
    """Write images of two classes, and return the folder."""
    draws = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 2) / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(draws, size, blur).save(path, quality=quality)
    return folder

"""The images to predict, from files, folders and memory, decoded and transformed as in evaluation."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from timm_accel.data.image_files import list_images
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image
from timm_accel.messages import one_line


class ImageInputs(Dataset):
    """Images without labels; a sample is (image ``(C, H, W)``, None), or (None, error) if it cannot be read.

    Args:
        items: Paths or PIL images.
        transform: Turns a decoded image into a tensor.
        prepare: Decodes an image.
    """

    def __init__(self, items: list[Any], transform: Callable[[Any], Tensor], prepare: PrepareImage) -> None:
        self.items, self.transform, self.prepare = items, transform, prepare

    @property
    def paths(self) -> list[str | None]:
        """The file of each image; None for an image in memory."""
        return [str(item) if isinstance(item, Path) else None for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str | None]:
        try:
            return self.transform(self._read(self.items[index])), None
        except OSError as error:
            return None, one_line(error, limit=None)

    def _read(self, item: Any) -> Image.Image:
        if not isinstance(item, Path):
            return read_image(item, self.prepare)
        with open(item, "rb") as file:
            return read_image(file, self.prepare)

    @staticmethod
    def collate_fn(samples: list[tuple[Tensor | None, str | None]]) -> tuple[Tensor | None, list[str | None]]:
        """Return the readable images, ``(B, C, H, W)`` or None, and for each sample its error or None."""
        images = [image for image, _ in samples if image is not None]
        return torch.stack(images) if images else None, [error for _, error in samples]


def find_images(images: Any) -> list[Any]:
    """Return a path or a PIL image for each image; the files of folders are in natural order.

    Args:
        images: A PIL image; a ``uint8`` array ``(H, W)`` or ``(H, W, C)``; a ``uint8`` tensor ``(C, H, W)``;
            a path of a file or of a folder, which is searched with all folders below it; or a list of these.

    Raises:
        FileNotFoundError: The path does not exist, or a folder holds no images.
        TypeError: An item is of another kind.
        ValueError: An array or tensor is of another shape.
    """
    if isinstance(images, str | Path) and not Path(images).exists():
        raise FileNotFoundError(
            f"Expected images to be an image, a file or a folder, but got {str(images)!r}, which does not exist. "
            "Correct the path."
        )
    return [found for item in _as_list(images) for found in _found(item)]


def _as_list(images: Any) -> Iterable[Any]:
    is_single = isinstance(images, str | Path | Image.Image)
    if is_single or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4) or not isinstance(images, Iterable):
        return [images]
    return images


def _found(item: Any) -> list[Any]:
    if isinstance(item, str | Path):
        return _files(Path(item)) if Path(item).is_dir() else [Path(item)]
    if isinstance(item, Image.Image):
        return [item]
    if not isinstance(item, np.ndarray | Tensor):
        raise TypeError(
            "Expected images to be paths, PIL images, or arrays or tensors of uint8, but got "
            f"{type(item).__name__}. Convert it."
        )
    return [_from_array(item)]


def _files(folder: Path) -> list[Path]:
    found, counts = list_images(folder)
    if not found:
        raise FileNotFoundError(
            f"Expected images to be a folder that holds images, but got {str(folder)!r}, {counts.why_none()}"
        )
    counts.log(repr(str(folder)))
    return [folder / path for path in found]


def _from_array(pixels: np.ndarray | Tensor) -> Image.Image:
    if pixels.dtype not in (np.uint8, torch.uint8):
        raise TypeError(
            f"Expected images to be uint8, from 0 to 255, but got {pixels.dtype}. Scale and convert them: they are "
            "normalized here."
        )
    array = isinstance(pixels, np.ndarray)
    if not (pixels.ndim == 3 and pixels.shape[2 if array else 0] in (1, 3, 4)) and not (array and pixels.ndim == 2):
        raise ValueError(
            f"Expected images to be arrays (H, W, C) or tensors (C, H, W) of 1, 3 or 4 channels, but got "
            f"{'an array' if array else 'a tensor'} {tuple(pixels.shape)}. Transpose it."
        )
    return to_pil_image(pixels.cpu() if isinstance(pixels, Tensor) else pixels)

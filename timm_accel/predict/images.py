"""The images to predict, from files, folders and memory, decoded and transformed as in evaluation."""

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from timm_accel.data.image_files import list_images
from timm_accel.data.loader_errors import is_of_the_machine
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image
from timm_accel.messages import nearest_path, one_line

_URL = re.compile(r"(?:data:|file:/|[A-Za-z][A-Za-z0-9+.-]+:/)")  # Path("s3://a") has one slash
_TEXT = "USOT"  # numpy's kinds of arrays of paths


@dataclass(frozen=True)
class Unreadable:
    """An item that cannot be an image.

    Args:
        path: The path of the item; None for an item in memory.
        error: Why it cannot be read.
    """

    path: str | None
    error: str


class ImageInputs(Dataset):
    """Images without labels; a sample is (image ``(C, H, W)``, None), or (None, error) if it cannot be read.

    Args:
        items: Paths, PIL images, bytes of encoded images, or `Unreadable`, from `find_images`.
        transform: Turns a decoded image into a tensor.
        prepare: Decodes an image.
    """

    def __init__(self, items: list[Any], transform: Callable[[Any], Tensor], prepare: PrepareImage) -> None:
        self.items, self.transform, self.prepare = items, transform, prepare

    @property
    def paths(self) -> list[str | None]:
        """The file of each image; None for an image in memory."""
        return [str(item) if isinstance(item, Path) else getattr(item, "path", None) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str | None]:
        try:
            return self.transform(self._read(self.items[index])), None
        except OSError as error:
            if is_of_the_machine(error):
                raise
            return None, one_line(error, limit=None)

    def _read(self, item: Any) -> Image.Image:
        if isinstance(item, Unreadable):
            raise OSError(item.error)
        if not isinstance(item, Path):
            return read_image(item, self.prepare, self.transform)
        if item.exists() and not item.is_file():
            raise OSError("it is no regular file")  # opening a pipe would wait for ever
        with open(item, "rb") as file:
            return read_image(file, self.prepare, self.transform)

    @staticmethod
    def collate_fn(samples: list[tuple[Tensor | None, str | None]]) -> tuple[Tensor | None, list[str | None]]:
        """Return the readable images, ``(B, C, H, W)`` or None, and for each sample its error or None."""
        images = [image for image, _ in samples if image is not None]
        return torch.stack(images) if images else None, [error for _, error in samples]


def find_images(images: Any) -> list[Any]:
    """Return a path, a PIL image, bytes or `Unreadable` for each image; the files of folders are in natural order.

    Args:
        images: A path of a file or of a folder, which is searched with all folders below it; a PIL image; a ``uint8``
            array ``(H, W)`` or ``(H, W, C)``; a ``uint8`` tensor ``(C, H, W)``; an encoded image in ``bytes`` or in an
            open binary file, which is read from its start; or an iterable of these, such as a list, an array of paths
            or a batch of four dimensions.

    Raises:
        FileNotFoundError: The path does not exist, or a folder holds no images.
        TypeError: An item is of another kind.
        ValueError: An array or tensor is of another shape, or the path is a URL.
    """
    if isinstance(images, str | os.PathLike):
        text = _text(images)
        if not os.path.exists(text):
            if _URL.match(text):
                raise ValueError(_no_url(text))
            raise FileNotFoundError(
                f"Expected images to be an image, a file or a folder, but got {text[:200]!r}, which does not exist. "
                f"{nearest_path(text, 'Correct the path.')}"
            )
    return [found for item in _as_list(images) for found in _found(item)]


def _text(path: Any) -> str:
    return os.fsdecode(os.fspath(path))


def _no_url(text: str) -> str:
    remedy = "Pass the path after it" if text.startswith("file:") else "Download it, and pass its path or its bytes"
    return f"Expected images to be on this machine, but got the URL {text[:200]!r}. {remedy}."


def _as_list(images: Any) -> Iterable[Any]:
    if isinstance(images, Mapping) or hasattr(images, "columns"):  # iteration would yield the keys
        raise TypeError(
            f"Expected images to be an image, a path or a list of these, but got a {type(images).__name__}, whose keys "
            "or columns are no images. Pass the column or the values that hold them."
        )
    if isinstance(images, np.ndarray) and images.dtype.kind in _TEXT:
        return [os.fsdecode(item) if images.dtype.kind == "S" else item for item in images.ravel().tolist()]
    is_single = isinstance(images, str | os.PathLike | Image.Image | bytes | bytearray | memoryview) or _opened(images)
    if is_single or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4) or not isinstance(images, Iterable):
        return [images]
    return images


def _opened(item: Any) -> Callable[[], Any] | None:
    """Return what reads a file object, or a path that is not on disk, such as ``zipfile.Path``."""
    return getattr(item, "read", None) or getattr(item, "read_bytes", None)


def _found(item: Any) -> list[Any]:
    if isinstance(item, str | os.PathLike):
        text = _text(item)
        if os.path.isdir(text):
            return _files(Path(text))
        if not os.path.exists(text) and (not text or "\0" in text or _URL.match(text)):
            return [Unreadable(text, _no_url(text) if _URL.match(text) else "it is no path of a file")]
        return [Path(text)]
    if isinstance(item, Image.Image):
        return [_with_pixels(item)]
    if isinstance(item, bytes | bytearray | memoryview):
        return [bytes(item)]
    if _opened(item):
        return [_content(item)]
    if not isinstance(item, np.ndarray | Tensor):
        raise TypeError(
            "Expected images to be paths, PIL images, encoded images in bytes or in binary files, or arrays or tensors "
            f"of uint8, in one flat list, but got {type(item).__name__}. Convert it."
        )
    return [_from_array(item)]


def _with_pixels(image: Image.Image) -> Image.Image | Unreadable:
    if 0 in image.size:
        return Unreadable(None, f"an image of {image.width} × {image.height} pixels is empty")
    return image


def _content(item: Any) -> bytes | Unreadable:
    """Return the bytes of a file object from its start, as Pillow reads it."""
    read = _opened(item)
    try:
        if hasattr(item, "seekable") and item.seekable():
            item.seek(0)
        content: Any = "" if read is None or isinstance(item, io.TextIOBase) else read()
    except (OSError, ValueError) as error:  # a closed file is a ValueError
        return Unreadable(None, one_line(error))
    if not isinstance(content, bytes):
        raise TypeError(
            f"Expected images to be binary files, but got {type(item).__name__}, which returns "
            f"{type(content).__name__}. Open it with mode 'rb', or pass its bytes."
        )
    return content


def _files(folder: Path) -> list[Path]:
    found, counts = list_images(folder)
    if not found:
        raise FileNotFoundError(
            f"Expected images to be a folder that holds images, but got {str(folder)!r}, {counts.why_none()}"
        )
    counts.log(repr(str(folder)))
    return [folder / path for path in found]


def _from_array(pixels: np.ndarray | Tensor) -> Image.Image | Unreadable:
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
    return _with_pixels(to_pil_image(pixels.cpu() if isinstance(pixels, Tensor) else pixels))

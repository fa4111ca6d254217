"""Decode every file of a dataset once, and record its properties and its fingerprints."""

import hashlib
import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from timm_accel.messages import one_line
from timm_accel.terminal import progress_bar

if TYPE_CHECKING:
    from timm_accel.data.transforms.pixel_range import PixelRange, Values

_FILES_AT_A_TIME = 16
_SIDE = 32
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(8), np.arange(_SIDE) + 0.5))  # the 8 lowest frequencies


class Scanned(NamedTuple):
    """The properties of one file; if `error` is not empty, only the path and perhaps the classes are set."""

    path: str
    classes: tuple[str, ...]
    error: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    is_turned: bool = False
    digest: bytes = b""
    hash: int = 0
    thumbnail: bytes = b""
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()
    values: "Values | None" = None


def scan(
    split: str, dataset: Any, num_workers: int | None, progress: bool, pixel_range: "PixelRange | None" = None
) -> list[Scanned]:
    """Scan every file of a dataset, in its order.

    Args:
        split: The name for the progress bar.
        dataset: A dataset with a timm reader.
        num_workers: The worker processes; None for one for each CPU, 0 to read in this process.
        progress: Whether to show a bar.
        pixel_range: The range of images of more than 8 bits; None for that of the type.
    """
    import torch
    from torch.utils.data import DataLoader

    from timm_accel.data.classes import class_names
    from timm_accel.data.resources import available_cpus

    cores = available_cpus()
    files: Any = _Files(dataset.reader, class_names(dataset) or [], pixel_range)
    loader = DataLoader(
        files,
        batch_size=_FILES_AT_A_TIME,
        num_workers=cores if num_workers is None else num_workers,
        collate_fn=list,
        worker_init_fn=files.own_archives,
        generator=torch.Generator(),  # the loader draws a seed from it, not from the global generator
    )
    scanned: list[Scanned] = []
    with progress_bar(total=len(dataset.reader), desc=f"audit of {split}", unit="image", shown=progress) as bar:
        for batch in loader:
            scanned += batch
            bar.update(len(batch))
    return scanned


class _Files:
    """The dataset of the workers: item n is the `Scanned` of file n of a reader."""

    def __init__(self, reader: Any, names: list[str], pixel_range: "PixelRange | None") -> None:
        self.reader, self.names, self.pixel_range = reader, names, pixel_range

    def own_archives(self, worker: int) -> None:
        """Let each worker open tar files again, since those that timm's reader (1.0.31) opened before are shared."""
        if hasattr(self.reader, "cache_tarfiles"):
            self.reader.cache_tarfiles = False

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Scanned:
        from timm_accel.data.loader_errors import is_of_the_machine

        path: str = self.reader.filename(index, absolute=True)
        classes: tuple[str, ...] = ()
        try:
            file, label, *_ = self.reader[index]
            classes = self._classes(label)
            with _strict_pillow():
                return Scanned(path, classes, **look(file, self.pixel_range, path))
        except Exception as error:  # Pillow raises a dozen kinds, SyntaxError among them
            if isinstance(error, OSError) and is_of_the_machine(error):
                raise
            return Scanned(path, classes, error=one_line(error, limit=None))

    def _classes(self, label: Any) -> tuple[str, ...]:
        labels = [] if label is None else label if isinstance(label, list | tuple) else [label]
        return tuple(self.names[one] if 0 <= one < len(self.names) else str(one) for one in labels)


def look(file: Any, pixel_range: "PixelRange | None" = None, path: str = "") -> dict[str, Any]:
    """Decode an image and return its fields of `Scanned`.

    Args:
        file: An open binary file, which is closed at the end, or bytes.
        pixel_range: The range of images of more than 8 bits; None for that of the type, or for the values of this image
            if its type has none.
        path: Its name.

    Raises:
        Exception: The image cannot be decoded.
    """
    from timm_accel.data.transforms.image_size import check_size, open_image
    from timm_accel.data.transforms.pixel_range import WIDE_MODES, proposed_range, values_of
    from timm_accel.data.transforms.prepare_image import PrepareImage, turn_of

    with io.BytesIO(file) if isinstance(file, bytes) else file as opened, open_image(opened) as stored:
        check_size(stored.size)
        stored.load()
        mode, is_turned = stored.mode, turn_of(stored) is not None
        values = values_of(stored, path) if mode in WIDE_MODES else None
        if values is not None and values.full is None and pixel_range is None:
            pixel_range = proposed_range(values.low, values.high, integer=False)
        image = PrepareImage(pixel_range=pixel_range)(stored)
    counts = np.array(image.histogram()).reshape(3, 256) / (image.width * image.height)
    levels = np.arange(256) / 255
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    return {
        "width": image.width,
        "height": image.height,
        "mode": mode,
        "is_turned": is_turned,
        "digest": hashlib.blake2b(image.tobytes(), digest_size=16, salt=struct.pack("QQ", *image.size)).digest(),
        "hash": perceptual_hash(np.asarray(small, dtype=np.float64)),
        "thumbnail": small.reduce(2).tobytes(),
        "mean": tuple((counts @ levels).tolist()),
        "square": tuple((counts @ levels**2).tolist()),
        "values": values,
    }


def perceptual_hash(pixels: np.ndarray) -> int:
    """Return 64 bits that tell which low frequencies of a grayscale image are above their median.

    Args:
        pixels: The image, ``(32, 32)``.

    Source: ``imagehash.phash``.
    """
    waves = _COSINES @ pixels @ _COSINES.T
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Raise for truncated files even if the program lets Pillow fill them, and hide Pillow's warnings."""
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant

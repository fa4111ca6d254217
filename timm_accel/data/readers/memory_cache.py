"""Decode the images of a reader once and keep them in memory that all loader workers share."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.readers.reader import Reader

from timm_accel.data.classes import labels_of
from timm_accel.data.resources import available_cpus, check_fits_in_memory, in_megabytes
from timm_accel.data.transforms.image_size import check_size, ignoring_size_warnings, open_image
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image
from timm_accel.terminal import progress_bar

_IMAGES_AT_A_TIME = 256  # read first, then decoded in threads


class MemoryCache(Reader):
    """Decode all images of a reader at the start and keep them in shared memory, before any transform.

    All loader workers of a process share one copy; each rank has a separate one. An image that cannot be decoded
    raises an error when it is indexed.

    Args:
        reader: The reader.
        prepare: Turns an image upright and converts it to grayscale or RGB.

    Raises:
        MemoryError: The decoded images do not fit into the free memory.
    """

    def __init__(self, reader: Any, prepare: PrepareImage) -> None:
        super().__init__()
        self.reader, self.prepare = reader, prepare
        self.labels: list[Any] = []
        self.class_to_idx = getattr(reader, "class_to_idx", None)
        self._errors: dict[int, str] = {}
        sizes = [self._measure(number) for number in range(len(reader))]
        if any(isinstance(label, int) and label == -1 for label in self.labels):  # for a file that cannot be opened
            self.labels = list(labels_of(reader))
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._shapes = np.zeros((len(reader), 2), dtype=np.int64)
        check_fits_in_memory(self.num_bytes, len(reader))
        self._pixels = torch.empty(self.num_bytes, dtype=torch.uint8).share_memory_()
        self._decode()

    @property
    def num_bytes(self) -> int:
        """The size of all decoded images in bytes."""
        return int(self._starts[-1])

    def _read(self, number: int) -> tuple[Any, Any]:
        """Return the bytes of a file, or a decoded image, and the label; readers are not thread-safe."""
        file, label = self.reader[number]
        if not hasattr(file, "read"):
            return file, label
        with file:
            return file.read(), label

    def _measure(self, number: int) -> int:
        """Store an image's label, and return its decoded size in bytes from its header."""
        area, label = 0, -1
        try:
            contents, label = self._read(number)
            image = contents
            if not isinstance(contents, Image.Image):
                image = ignoring_size_warnings(lambda: open_image(contents))
            check_size(image.size)  # before memory is taken
            area = image.width * image.height
        except Exception as error:  # Pillow raises a dozen kinds
            self._errors[number] = str(error)
        self.labels.append(label)
        return area * self._channels

    @property
    def _channels(self) -> int:
        return 1 if self.prepare.mode == "L" else 3

    def _decode(self) -> None:
        numbers = [number for number in range(len(self)) if number not in self._errors]
        shown = os.environ.get("LOCAL_RANK", "0") == "0"
        what = f"decode into {in_megabytes(self.num_bytes)}"
        bar = progress_bar(total=len(numbers), desc=what, leave=False, shown=shown)
        with ThreadPoolExecutor(available_cpus()) as pool, bar:
            for start in range(0, len(numbers), _IMAGES_AT_A_TIME):
                group = numbers[start : start + _IMAGES_AT_A_TIME]
                for _ in pool.map(self._keep, group, [self._read(number)[0] for number in group]):
                    bar.update()

    def _keep(self, number: int, contents: Any) -> None:
        try:
            pixels = np.asarray(read_image(contents, self.prepare))
        except OSError as error:
            self._errors[number] = str(error)
            return
        self._shapes[number] = pixels.shape[:2]
        start = int(self._starts[number])
        self._pixels[start : start + pixels.size] = torch.from_numpy(pixels.copy()).flatten()

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        if index in self._errors:
            raise OSError(self._errors[index])
        start, end = self._starts[index : index + 2]
        height, width = self._shapes[index]
        pixels = self._pixels[start:end].numpy().reshape(height, width, self._channels)
        return Image.fromarray(pixels[..., 0] if self._channels == 1 else pixels), self.labels[index]

    def __len__(self) -> int:
        return len(self.reader)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.reader.filename(index, basename, absolute)

"""A dataset over any timm reader, with class names, upright images, and a rule for unreadable images."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from timm.data import ImageDataset, MultiLabelTarget
from torch.utils.data import DataLoader, default_collate

from timm_accel.data.classes import (
    in_label_order,
    is_multi_label,
    labels_of,
    lists_labels,
    transformed,
    transformed_labels,
)
from timm_accel.data.labels import are_lists, check_label, require_labels
from timm_accel.data.loader_errors import is_of_the_machine
from timm_accel.data.transforms.pixel_range import PixelRange, settled_pixel_range
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image
from timm_accel.messages import one_line

_IMAGES_AT_A_TIME = 16  # when all are tried

_logger = logging.getLogger(__name__)


def check_error_options(on_error: str, max_bad_fraction: float) -> None:
    """Raise a `ValueError` when an option of `LabeledImages` about unreadable images is out of range."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"Expected on_error to be 'raise' or 'skip', but got {on_error!r}. Choose one of them.")
    if not (isinstance(max_bad_fraction, int | float) and 0 <= max_bad_fraction <= 1):
        raise ValueError(
            f"Expected max_bad_fraction to be from 0 to 1, but got {max_bad_fraction!r}. The default is 0.01."
        )


def default_prepare(prepare: Any, pixel_range: Any, readers: Iterable[Any]) -> Any:
    """Return the given `prepare`, or a `PrepareImage` with the range that was given or that a sample agrees on.

    Raises:
        ValueError: Both are given, or the images need a `pixel_range`.
    """
    if prepare is None:
        return PrepareImage(pixel_range=settled_pixel_range(readers, pixel_range))
    if pixel_range is not None:
        raise ValueError(
            f"Expected pixel_range or prepare, since prepare scales the pixels, but got both, {pixel_range!r} too. "
            "Pass prepare=PrepareImage(pixel_range=…) alone."
        )
    return prepare


class LabeledImages(ImageDataset):
    """Extend timm's `ImageDataset`: no image is replaced or left out unless you ask for it.

    timm's dataset (1.0.31) replaces an unreadable image by the next one, in evaluation too, and only logs a line.

    With ``on_error="skip"``, training replaces an unreadable image by the next readable one and its label, so the
    number of batches and updates does not change. In evaluation the sample is None, and `collate_fn` leaves it out: a
    batch may be short, or None if all its images are unreadable. `unreadable` lists these images of all workers.

    Args:
        reader: A timm reader: ``reader[index]`` gives an open binary file, or bytes, and a label.
        transform: Turns a decoded image into the model's input.
        target_transform: Turns a label into a target. With None, a multi-label reader gets timm's `MultiLabelTarget`,
            and other labels stay as they are.
        prepare: Decodes an image; the default gives RGB.
        pixel_range: The `pixel_range` of the default `prepare`; None for the one that a sample of the images agrees on.
        device_transform: The on-device normalization and random erasing. `LoopTrainer` applies it to batches on the
            device. Indexing the dataset applies it to each image.
        on_error: ``"raise"`` stops at an image that cannot be read, ``"skip"`` continues without it.
        is_training: Whether a skipped image is replaced; in evaluation it is left out.
        max_bad_fraction: The share of unreadable images above which a run stops, but at least 10 of them.

    Raises:
        ValueError: `on_error` is unknown, `max_bad_fraction` is not from 0 to 1, a label is no class (in training also
            if no image has a label), or `pixel_range` is given beside `prepare`, is no range, or is needed.
        OSError: An indexed image cannot be read, or no image can be read; the message has its name.

    Source: ``timm.data.ImageDataset``.
    """

    def __init__(
        self,
        reader: Any,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        *,
        prepare: Callable[[Any], Any] | None = None,
        pixel_range: PixelRange | None = None,
        device_transform: Callable[[Any], Any] | None = None,
        on_error: str = "raise",
        is_training: bool = False,
        max_bad_fraction: float = 0.01,
    ) -> None:
        check_error_options(on_error, max_bad_fraction)
        if target_transform is None and is_multi_label(reader):
            target_transform = MultiLabelTarget(len(reader.class_to_idx))
        super().__init__("", reader=reader, transform=transform, target_transform=target_transform)
        self.prepare = default_prepare(prepare, pixel_range, [reader])
        self.device_transform = device_transform
        self.on_error, self.is_training, self.max_bad_fraction = on_error, is_training, max_bad_fraction
        self._check_labels()
        # one flag for each image, in memory shared with the loader workers, so that the main process sees theirs
        self._bad = torch.zeros(len(reader), dtype=torch.uint8).share_memory_()

    def _check_labels(self) -> None:
        """Check the labels of the reader where it has names of classes; if it lists no labels, each when it is read."""
        self._names_to_check: list[str] | None = None
        if not getattr(self.reader, "class_to_idx", None):
            return
        if not lists_labels(self.reader):
            self._names_to_check = in_label_order(self.reader.class_to_idx)
        elif self.is_training:
            self.require_labels()
        else:
            labels_of(self.reader)

    def require_labels(self) -> None:
        """Raise a `ValueError` where a label is no class, or no image has a label."""
        if self._names_to_check is None:
            require_labels(labels_of(self.reader), self.filename)

    transform_of_size: Callable[..., Any] | None = None
    """Create the transform for another ``input_size`` (height, width) in pixels; None where the dataset cannot."""

    data_config: dict[str, Any] | None = None
    """The preprocessing of an evaluation dataset: ``input_size``, ``mean``, ``crop_pct``, …; None if it is unknown."""

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, in the order of their labels; None where the reader has none."""
        class_to_idx = getattr(self.reader, "class_to_idx", None)
        return in_label_order(transformed(class_to_idx, self)) if class_to_idx else None

    @property
    def class_sizes(self) -> dict[str, int]:
        """The number of images of each class."""
        names, labels = self.class_names or [], self.labels
        numbers = np.array([label for each in labels for label in each] if are_lists(labels) else labels, dtype=int)
        return dict(zip(names, np.bincount(numbers[numbers >= 0], minlength=len(names)).tolist(), strict=True))

    @property
    def labels(self) -> np.ndarray:
        """The label of each image, ``(N,)``; a list of labels where the dataset is multi-label."""
        return transformed_labels(labels_of(self.reader), self)

    @property
    def unreadable(self) -> list[int]:
        """The indices of the images that this process or its loader workers could not read so far."""
        return self._bad.nonzero().flatten().tolist()

    @property
    def max_unreadable(self) -> int:
        """The number of unreadable images above which a run stops."""
        return max(10, int(self.max_bad_fraction * len(self)))

    def note_unreadable(self, numbers: Iterable[int]) -> None:
        """Add images that other ranks could not read to `unreadable`."""
        self._bad[torch.tensor([*numbers], dtype=torch.long)] = 1

    def find_unreadable(self, num_workers: int = 0, rank: int = 0, num_processes: int = 1) -> list[int]:
        """Decode every image of a rank's share, without transforming it, and return the indices of unreadable ones.

        Args:
            num_workers: The loader workers.
            rank: The rank of this process.
            num_processes: The number of ranks that share the images.
        """
        shared = range(rank, len(self), num_processes)
        loader: Any = DataLoader(
            _Readable(self),  # type: ignore[arg-type]
            _IMAGES_AT_A_TIME,
            sampler=shared,
            num_workers=num_workers,
            collate_fn=list,
            generator=torch.Generator(),  # the loader draws a seed from it, not from the global generator
        )
        readable = (each for batch in loader for each in batch)
        return [number for number, is_readable in zip(shared, readable, strict=True) if not is_readable]

    def why_unreadable(self, index: int) -> str:
        """Read an image again and return the error; "" when it can be read now."""
        try:
            self._read(index)
        except OSError as error:
            if is_of_the_machine(error):
                raise
            return str(error)
        return ""

    def __getitem__(self, index: int) -> Any:
        sample = self.load(index)
        if sample is None or self.device_transform is None:
            return sample
        return self.device_transform(sample[0]), *sample[1:]

    def load(self, index: int) -> Any:
        """Return a sample (image, label) before the `device_transform`, or None for an image that is left out."""
        if not 0 <= index < len(self):
            raise IndexError(f"Expected index to be from 0 to {len(self) - 1}, but got {index}. Choose one of these.")
        for candidate in range(index, index + len(self)):
            number = candidate % len(self)
            try:
                image, label = self._read(number)
            except OSError as error:
                self._note(number, error)
                if not self.is_training:
                    return None
                continue
            return self._transformed(image, label, number)
        raise OSError(f"Expected a readable image, but got none among {len(self)}. Repair or replace them.")

    def _read(self, number: int) -> tuple[Any, Any]:
        file, label = self.reader[number]
        try:
            return read_image(file, self.prepare, self.transform), label
        finally:
            if hasattr(file, "read"):  # a file, not a decoded image of the source
                file.close()

    def _note(self, number: int, error: OSError) -> None:
        if is_of_the_machine(error):
            raise error
        path = self.filename(number, absolute=True)
        if self.on_error == "raise":
            raise OSError(
                f"Expected every file to be a readable image, but got {path!r} ({error}). Repair or remove it."
            ) from error
        if not self._bad.any():
            _logger.warning(
                "%r cannot be read (%s) and is skipped; further ones are only counted.", path, one_line(error, None)
            )
        self._bad[number] = 1

    def _transformed(self, image: Any, label: Any, number: int) -> tuple[Any, Any]:
        image = image if self.transform is None else self.transform(image)
        if self._names_to_check is not None:
            label = check_label(label, self._names_to_check, self.filename(number))
        return image, (label if self.target_transform is None else self.target_transform(label))

    @staticmethod
    def collate_fn(samples: list[Any]) -> Any:
        """Collate the samples that are not None; return None when all are."""
        readable = [sample for sample in samples if sample is not None]
        return default_collate(readable) if readable else None


class _Readable:
    """Whether image n of a dataset can be read, for loader workers."""

    def __init__(self, dataset: LabeledImages) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> bool:
        return not self.dataset.why_unreadable(number)

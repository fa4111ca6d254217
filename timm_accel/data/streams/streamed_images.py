"""An image set that is read from front to back: shards too many, too large or too far to be opened anywhere."""

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from timm.data.readers.shared_count import SharedCount
from torch.utils.data import IterableDataset, get_worker_info

from timm_accel.data.classes import in_label_order
from timm_accel.data.labelled_images import LabelledImages, check_error_options
from timm_accel.data.streams.stream_reader import StreamReader
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image

_logger = logging.getLogger(__name__)


def create_image_set(reader: Any, *transforms: Any, **options: Any) -> Any:
    """Return `StreamedImages` over the reader of a stream, `LabelledImages` over any other, with the same options."""
    return (StreamedImages if isinstance(reader, StreamReader) else LabelledImages)(reader, *transforms, **options)


def refuse_streams(readers: Iterable[Any]) -> None:
    """Raise a `ValueError` where pictures are to be kept in memory by number, and a reader is a stream's."""
    if any(isinstance(reader, StreamReader) for reader in readers):
        raise ValueError(
            "Expected no cache for a stream, since its pictures have no numbers, but got one. Leave cache out."
        )


class StreamedImages(IterableDataset):
    """The images of a stream, decoded, transformed and seeded as those of `LabelledImages` are.

    In training each process and loader worker reads shards of its own, in an order shuffled within a buffer, and gives
    as many images as the others: those of a worker with fewer come again, of one with more some are left out. In
    evaluation one process reads everything once, and the others nothing.

    Args:
        reader: A `StreamReader`: it gives (``{"bytes": …, "path": …}``, label).
        transform: What makes an image of the model's input.
        target_transform: What makes a target of the label.
        prepare: How a picture is decoded; RGB by default.
        device_transform: What follows `transform`; streams apply it to each image.
        on_error: ``"raise"`` stops at a picture that cannot be read. ``"skip"`` goes on: in training the next one takes
            its place, in evaluation it is left out.
        is_training: Whether the order is shuffled and the number of images filled up to whole batches.
        max_bad_fraction: The share of unreadable pictures above which a worker stops, but at least 10 of them.

    Raises:
        ValueError: `on_error` is neither, `max_bad_fraction` no share, or the stream is empty.
        OSError: By iterating, at a picture that cannot be read; its name is in the message.

    Source: ``timm.data.IterableImageDataset``.
    """

    shards_itself = True
    """Whether accelerate is to leave the sharing among processes to the set."""

    def __init__(
        self,
        reader: Any,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        *,
        prepare: Callable[[Any], Any] | None = None,
        device_transform: Callable[[Any], Any] | None = None,
        on_error: str = "raise",
        is_training: bool = False,
        max_bad_fraction: float = 0.01,
    ) -> None:
        check_error_options(on_error, max_bad_fraction)
        if reader.num_samples == 0:
            raise ValueError("Expected a stream to hold images, but got none. Correct its name, or write it anew.")
        self.reader, self.is_training = reader, is_training
        reader.is_training, reader.skips = is_training, on_error == "skip"
        self.on_error, self.max_bad_fraction = on_error, max_bad_fraction
        self._prepare = prepare or PrepareImage()
        self._transforms = [each for each in (transform, device_transform) if each is not None]
        self._target_transform = target_transform
        self._seed_image: Callable[..., None] | None = None
        self._epoch, self._rank = SharedCount(), 0

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return in_label_order(self.reader.class_to_idx)

    @property
    def num_samples(self) -> int:
        """The number of images in the split, on all processes together."""
        return self.reader.num_samples

    def __len__(self) -> int:
        """Return how many images this process gives in an epoch."""
        if self.is_training:
            return len(self.reader)
        return self.num_samples if self._rank == 0 else 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the draws of the next iteration, in running workers too; evaluation has one for all."""
        self._epoch.value = epoch if self.is_training else 0
        self.reader.set_epoch(self._epoch.value)

    def share(
        self,
        batch_size: int,
        num_workers: int,
        rank: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        seed_image: Callable[..., None] | None = None,
    ) -> None:
        """Settle, before the loader starts, which part of the stream this process reads.

        Args:
            batch_size: Of the loader.
            num_workers: Of the loader.
            rank: The number of this process.
            num_processes: The number of processes that train together.
            seed: The seed of the order.
            seed_image: Called with (epoch, rank, worker, position) before an image's transforms draw.

        Raises:
            ValueError: Some worker would get nothing to read.
        """
        self._rank, self._seed_image = rank, seed_image
        part = (rank, num_processes) if self.is_training else (0, 1)
        self.reader.share(batch_size, num_workers, *part, seed)

    def __iter__(self) -> Iterator[Any]:
        if len(self) == 0:  # evaluation, on another process
            return
        worker = 0 if (info := get_worker_info()) is None else info.id
        for position, (picture, label) in enumerate(self._pictures()):
            if self._seed_image is not None:
                self._seed_image(self._epoch.value, self._rank, worker, position)
            for transform in self._transforms:
                picture = transform(picture)
            yield picture, (label if self._target_transform is None else self._target_transform(label))

    def _pictures(self) -> Iterator[tuple[Any, Any]]:
        """Yield what can be read; in training as many as were planned, from the start again where some are missing."""
        given, bad = 0, 0
        while True:
            before = given
            for file, label in self.reader:
                try:
                    picture = _decode(file, self._prepare)
                except OSError as error:
                    bad += 1
                    self._note(file["path"], error, bad)
                    continue
                yield picture, label
                given += 1
                if self.is_training and given == self.reader.samples_per_worker:
                    return
            if not self.is_training:
                return
            if given == before:
                raise OSError(
                    "Expected a readable image, but got none in this worker's shards. Repair or replace them."
                )

    def _note(self, path: str, error: OSError, bad: int) -> None:
        if self.on_error == "raise":
            raise OSError(
                f"Expected every file to be a readable image, but got {path!r} ({error}). Repair or remove it."
            ) from error
        if bad == 1:
            _logger.warning("%r cannot be read (%s) and is skipped; further ones are only counted.", path, error)
        if bad > (most := max(10, int(self.max_bad_fraction * self.num_samples))):
            raise OSError(
                f"Expected at most {most} unreadable images in an epoch (max_bad_fraction={self.max_bad_fraction}), "
                f"but got {bad}, such as {path!r}. Repair or remove them."
            )


def _decode(file: dict[str, Any], prepare: Callable[[Any], Any]) -> Any:
    if file["bytes"] is not None:
        return read_image(io.BytesIO(file["bytes"]), prepare)
    from datasets.utils.file_utils import xopen  # Hugging Face's folders: the file beside the label, maybe far away

    with xopen(file["path"], "rb") as opened:
        return read_image(opened, prepare)

"""A dataset that is read from front to back, for shards without random access."""

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from timm_accel.data.classes import in_label_order
from timm_accel.data.labeled_images import LabeledImages, check_error_options, default_prepare
from timm_accel.data.labels import check_label
from timm_accel.data.loader_errors import is_of_the_machine
from timm_accel.data.streams.stream_reader import StreamReader
from timm_accel.data.streams.unreadable_log import UnreadableImages, UnreadableLog
from timm_accel.data.transforms.pixel_range import PixelRange
from timm_accel.data.transforms.prepare_image import read_image
from timm_accel.messages import one_line

_logger = logging.getLogger(__name__)


def create_image_dataset(reader: Any, *transforms: Any, **options: Any) -> Any:
    """Return `StreamedImages` for the reader of a stream and `LabeledImages` for any other, with the same options."""
    return (StreamedImages if isinstance(reader, StreamReader) else LabeledImages)(reader, *transforms, **options)


class StreamedImages(IterableDataset):
    """Decode, transform and seed the images of a stream as `LabeledImages` does.

    In training each rank and loader worker reads separate shards, shuffled within a buffer. All return the same number
    of images: a worker with fewer images repeats some, a worker with more leaves some out. Where the numbers of images
    in the shards are known, they are shared evenly, so that none is left out. In evaluation each rank reads everything
    once, and decodes every n-th image.

    Args:
        reader: A `StreamReader`; its samples are (``{"bytes": …, "path": …}``, label).
        transform: Turns a decoded image into the model's input.
        target_transform: Turns a label into a target.
        prepare: Decodes an image; the default gives RGB.
        pixel_range: The `pixel_range` of the default `prepare`.
        device_transform: Runs after `transform`, on each image.
        on_error: ``"raise"`` stops at an image that cannot be read. ``"skip"`` replaces it by the next one in training
            and leaves it out in evaluation.
        is_training: Whether the order is shuffled and the number of images is rounded up to full batches.
        max_bad_fraction: The share of unreadable images above which a worker stops, but at least 10 of them.

    Raises:
        ValueError: `on_error` is unknown, `max_bad_fraction` is not from 0 to 1, or the stream is empty.
        OSError: An image cannot be read while iterating; the message has its name. A label that is no class is a
            `ValueError` then.

    Source: ``timm.data.IterableImageDataset``.
    """

    shards_itself = True
    """Whether this dataset shards itself, so that accelerate does not."""

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
        if reader.num_samples == 0:
            raise ValueError("Expected a stream to hold images, but got none. Correct its name, or write it again.")
        self.reader, self.is_training = reader, is_training
        reader.is_training, reader.skips = is_training, on_error == "skip"
        self.on_error, self.max_bad_fraction = on_error, max_bad_fraction
        self._prepare = default_prepare(prepare, pixel_range, ())
        self._transforms = [each for each in (transform, device_transform) if each is not None]
        self._target_transform = target_transform
        self._seed_image: Callable[..., None] | None = None
        self._epoch, self._rank, self._num_processes, self._num_workers = SharedCount(), 0, 1, 0
        self._log, self._shares = UnreadableLog(), 0
        self._start, self._known = (0, 0), dict[int, list[int]]()  # of a resumed epoch
        self._names = self.class_names

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return in_label_order(self.reader.class_to_idx)

    @property
    def num_samples(self) -> int:
        """The number of images in the split, over all ranks."""
        return self.reader.num_samples

    @property
    def num_workers(self) -> int:
        """The loader workers of this rank, as `share` was told."""
        return self._num_workers

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """The (path, error) of the images that this process or its loader workers could not read so far."""
        return self._log.read()

    @property
    def max_unreadable(self) -> int:
        """The number of unreadable images above which a run stops."""
        return max(10, int(self.max_bad_fraction * self.num_samples))

    def note_unreadable(self, images: Iterable[tuple[str, str]]) -> None:
        """Add images that other ranks could not read to `unreadable`."""
        known = set(self.unreadable)
        for image in images:
            if image not in known:
                self._log.add(*image)

    def find_unreadable(self, *_: Any) -> list[tuple[str, str]]:
        """Decode every image that this rank reads, with the workers of `share`, and return the unreadable ones."""
        loader: Any = DataLoader(
            UnreadableImages(self), batch_size=None, num_workers=self._num_workers, generator=torch.Generator()
        )
        return [(path, error) for path, error in loader]

    def filename(self, image: tuple[str, str], absolute: bool = True) -> str:
        """Return the path of an entry of `unreadable`."""
        return image[0]

    def why_unreadable(self, image: tuple[str, str]) -> str:
        """Return the error of an entry of `unreadable`."""
        return image[1]

    def __len__(self) -> int:
        """Return how many images this rank decodes in an epoch, in an evaluation by several workers at most."""
        if self.is_training:
            return len(self.reader)
        others = self._num_processes - 1 - self._rank
        return (self.num_samples + max(1, self._num_workers) * others) // self._num_processes

    def max_workers(self, num_processes: int) -> int:
        """Return how many loader workers of each of `num_processes` have something to read in training."""
        return self.reader.parts_per_process(num_processes)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, also in running workers; evaluation always uses epoch 0."""
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
        """Choose, before the loader starts, which part of the stream this rank reads.

        Args:
            batch_size: The batch size of the loader.
            num_workers: The workers of the loader.
            rank: The rank of this process.
            num_processes: The number of ranks.
            seed: The seed of the order.
            seed_image: Called with (epoch, rank, worker, position) before the transforms of an image.

        Raises:
            ValueError: A worker would have nothing to read.
        """
        self._rank, self._num_processes, self._num_workers = rank, num_processes, num_workers
        self._seed_image = seed_image
        self._start, self._known, self._shares = (0, 0), {}, self._shares + 1
        part = (rank, num_processes) if self.is_training else (0, 1)
        self.reader.share(batch_size, num_workers, *part, seed)

    def start_at(self, batch: int) -> int:
        """Let the next iteration begin near a batch of the current epoch, without reading what comes before.

        Args:
            batch: The number of the batch among those of this rank.

        Returns:
            The number of batches that the loader gives before that one: fewer than it has workers, since the first
            worker gives the first batch.
        """
        rounds, rest = divmod(batch, max(1, self._num_workers))
        self._start = self._epoch.value, rounds * self.reader.batch_size
        return rest

    def epoch_state(self) -> dict[str, Any]:
        """Return what a position in the epoch depends on: the workers, and the unreadable images so far.

        It is no ``state_dict``: torchdata's loader would take that for the position itself.
        """
        epoch = self._epoch.value
        met = [list(each) for each in self._log.met(self._shares, epoch)]
        return {"epoch": epoch, "workers": self._num_workers, "unreadable": met}

    def restore_epoch(self, state: dict[str, Any]) -> None:
        """Load what `epoch_state` returned, before `start_at`; with another number of workers, the names alone."""
        same = max(1, state["workers"]) == max(1, self._num_workers)
        for path, error, worker, number in state["unreadable"]:
            self._log.add(path, error, *((self._shares, state["epoch"], worker, number) if same else ()))
            if same:
                self._known.setdefault(worker, []).append(number)

    def decodes(self, number: int) -> bool:
        """Return whether this rank decodes a sample, by its number among those of the worker."""
        return self.is_training or number % self._num_processes == self._rank

    def read(self, file: dict[str, Any], label: Any, bad: int, worker: int, number: int) -> tuple[Any, Any] | None:
        """Return a sample of the reader as (decoded image, label); None if it cannot be read and is left out.

        Args:
            file: The file, as the reader gives it.
            label: Its label.
            bad: How many images of this worker before it could not be read.
            worker: The loader worker that reads it.
            number: Its number among the samples of the worker.
        """
        try:
            image = self.decode(file)
        except OSError as error:
            self._note(file["path"], error, bad + 1, worker, number)
            return None
        return image, check_label(label, self._names, file["path"])

    def transformed(self, image: Any, label: Any) -> tuple[Any, Any]:
        """Return what `read` returned as (image, target) for the model."""
        for transform in self._transforms:
            image = transform(image)
        return image, (label if self._target_transform is None else self._target_transform(label))

    def __iter__(self) -> Iterator[Any]:
        worker = 0 if (info := get_worker_info()) is None else info.id
        for position, image, label in self._images(worker):
            if self._seed_image is not None:
                rank = self._rank if self.is_training else 0  # the same in an evaluation by any number of ranks
                self._seed_image(self._epoch.value, rank, worker, position)
            yield self.transformed(image, label)

    def _images(self, worker: int) -> Iterator[tuple[int, Any, Any]]:
        """Yield the readable images with their positions; in training always up to the same number.

        Where images are missing, the worker reads its part again from the start.
        """
        position, number = self._first(worker)
        bad, length = number - position, self.reader.samples_per_worker
        while not self.is_training or position < length:
            self.reader.first = begin = number % length if self.is_training else 0
            before = position
            for file, label in self.reader:
                number += 1
                if not self.decodes(number - 1):
                    continue
                read = self.read(file, label, bad, worker, number - 1)
                if read is None:
                    bad += 1
                    continue
                yield (position if self.is_training else number - 1), *read
                position += 1
                if self.is_training and position == length:
                    return
            if not self.is_training:
                return
            if position == before and begin == 0:
                raise OSError(
                    "Expected a readable image, but got none in this worker's shards. Repair or replace them."
                )

    def _first(self, worker: int) -> tuple[int, int]:
        """Return how many images and how many samples, unreadable ones too, a worker passes over."""
        epoch, position = self._start
        if not self.is_training or epoch != self._epoch.value:
            return 0, 0
        number = position
        for unreadable in sorted(self._known.get(worker, ())):
            number += unreadable < number
        return position, number

    def _note(self, path: str, error: OSError, bad: int, worker: int, number: int) -> None:
        if is_of_the_machine(error):
            raise error
        if self.on_error == "raise":
            raise OSError(
                f"Expected every file to be a readable image, but got {path!r} ({error}). Repair or remove it."
            ) from error
        self._log.add(path, str(error), self._shares, self._epoch.value, worker, number)
        if bad == 1:
            _logger.warning(
                "%r cannot be read (%s) and is skipped; further ones are only counted.", path, one_line(error, None)
            )
        if bad > self.max_unreadable:
            raise OSError(
                f"Expected at most {self.max_unreadable} unreadable images in an epoch "
                f"(max_bad_fraction={self.max_bad_fraction}), but got {bad}, such as {path!r} ({error}). Repair or "
                "remove them."
            )

    def decode(self, file: dict[str, Any]) -> Any:
        """Return the image of a file, as the reader gives it.

        Raises:
            OSError: It cannot be read.
        """
        resizing = self._transforms[0] if self._transforms else None
        if file["bytes"] is not None:
            return read_image(io.BytesIO(file["bytes"]), self._prepare, resizing)
        from datasets.utils.file_utils import xopen  # Hugging Face's folders hold a path, maybe remote

        with xopen(file["path"], "rb") as opened:
            return read_image(opened, self._prepare, resizing)

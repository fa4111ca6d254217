"""Labeled images from any source, with the preprocessing and the order of classes of a classifier."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import torch
from timm.data import MultiLabelTarget
from timm.data.readers.reader import Reader
from torch import Tensor
from torch.utils.data import DataLoader

from timm_accel.data.classes import class_name, in_label_order, is_multi_label, labels_of
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.labels import require_labels
from timm_accel.data.loader_errors import loader_errors_explained
from timm_accel.data.readers.folder_index import FolderReader
from timm_accel.data.readers.manifest_folder import is_manifest
from timm_accel.data.readers.manifest_reader import ManifestReader
from timm_accel.data.readers.reader_views import ReaderPart
from timm_accel.data.resources import check_loader_options
from timm_accel.data.sources import Source
from timm_accel.data.splits.split_folders import split_folders
from timm_accel.data.streams.shared_stream import SharedStream
from timm_accel.data.streams.streamed_images import StreamedImages, create_image_dataset
from timm_accel.distributed.shares import Share
from timm_accel.predict.classifier import Classifier
from timm_accel.terminal import progress_bar


class ModelTarget:
    """Turn a label of the data, or a list of labels, into the model's target.

    Args:
        numbers: The model's class number for each class of the data.
        num_classes: The number of the model's classes.
        multi_label: Whether targets are ``(num_classes,)`` of 0 and 1.
    """

    def __init__(self, numbers: Sequence[int], num_classes: int, multi_label: bool) -> None:
        self.numbers = list(numbers)
        self._multi_label_target = MultiLabelTarget(num_classes) if multi_label else None

    def __call__(self, label: Any) -> Any:
        if self._multi_label_target is None:
            return self.numbers[int(label)]
        labels = label if isinstance(label, list | tuple) else [label]
        return self._multi_label_target([self.numbers[int(each)] for each in labels])


def open_labeled(
    classifier: Classifier, reader: Any, transform: Callable[[Any], Any]
) -> LabeledImages | StreamedImages:
    """Return the images with the model's targets; unreadable images are left out.

    Args:
        classifier: The classifier.
        reader: A reader from `open_reader`.
        transform: Turns a decoded image into a tensor.

    Raises:
        ValueError: A class is not one of the model's, only one of data and model is multi-label, a label is no class,
            or no image has a label.
    """
    multi_label, classes = is_multi_label(reader), getattr(reader, "class_to_idx", None)
    if not hasattr(reader, "share"):
        require_labels(labels_of(reader), reader.filename)
    if not classes:
        raise ValueError(
            "Expected data to name its classes, since they are matched with the model's by name, but got a "
            f"{type(reader).__name__} without class_to_idx. Add it to the reader."
        )
    if multi_label != classifier.multi_label and not (classifier.multi_label and _may_be_multi_label(reader)):
        kind, wanted = ("multi-label", "single-label") if multi_label else ("single-label", "multi-label")
        raise ValueError(
            f"Expected data to be {wanted}, as the classifier is, but got {kind} data. "
            f"Open it with load_classifier(…, multi_label={multi_label})."
        )
    target = ModelTarget(
        model_numbers(classifier, in_label_order(classes)), len(classifier.class_names), classifier.multi_label
    )
    return create_image_dataset(
        reader,
        transform,
        target,
        prepare=classifier.prepare,
        on_error="skip",
    )


def _may_be_multi_label(reader: Any) -> bool:
    """Return whether images may just happen to have one label each: a cell of a manifest holds any number."""
    while isinstance(reader, ReaderPart):
        reader = reader.reader
    return isinstance(reader, ManifestReader)


def open_reader(data: Any, split: str | None) -> Any:
    """Return the timm reader of labeled images.

    Args:
        data: Anything that `Source` takes, a `Source`, or a dataset.
        split: The split; None for all images.

    Raises:
        FileNotFoundError: The data do not exist.
        ValueError: There is no such split.
    """
    reader = getattr(data, "reader", data)  # timm's and timm_accel's datasets have the reader of their files
    if isinstance(reader, Reader):
        return reader
    source = data if isinstance(data, Source) else Source(data)
    is_source = isinstance(data, Source | str | Path | Mapping)  # anything else is a dataset, and all of it counts
    if split is not None and is_source:
        return source.open(split)
    if is_manifest(source.data):
        return ManifestReader(source.data, root=source.root)
    reader = Source({"val": source.data}).open("val")  # the parts of a mapping are never split
    if isinstance(reader, FolderReader):
        folders = split_folders(Path(reader.root)).values()
        reader.name_below(os.path.relpath(folder, reader.root) for folder in folders)
    return reader


def open_shared(data: Any, split: str | None, share: Share) -> Any:
    """Return the reader of `open_reader`; one process of each host opens what has a name. Collective.

    Args:
        data: As for `open_reader`.
        split: The split.
        share: The share of this process.
    """
    source = data.data if isinstance(data, Source) else data
    parts = source.values() if isinstance(source, Mapping) else [source]
    if all(isinstance(part, str | Path) for part in parts):
        return share.on_each_host(lambda: open_reader(data, split))
    return share.agreed(lambda: open_reader(data, split))


def model_numbers(classifier: Classifier, names: list[str]) -> list[int]:
    """Return the model's class number for each class of the data, by name; the data may lack some.

    Args:
        classifier: The classifier.
        names: The class names of the data, in the order of its labels.

    Raises:
        ValueError: The model does not have one of the classes, or its classes have no names and their number differs.
    """
    known = [class_name(name) for name in classifier.class_names]
    named = set(names) <= set(known) if classifier.is_named else names == known[: len(names)]
    if named or set(names) == set(known):
        return [known.index(name) for name in names]
    if not classifier.is_named and len(names) == len(known):
        return list(range(len(names)))
    missing, extra = sorted(set(known) - set(names)), sorted(set(names) - set(known))
    raise ValueError(
        f"Expected data to have the model's {len(known)} classes, but got {len(names)}: it lacks {_some(missing)} and "
        f"has {_some(extra)} besides. Use a model of these classes, or name its classes as the model does."
    )


def _some(names: list[str], max_names: int = 10) -> str:
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return f"{names[:max_names]}{more}" if names else "none"


def collect(
    compute: Callable[[Tensor, Tensor], Tensor],
    dataset: LabeledImages | StreamedImages,
    *,
    batch_size: int,
    num_workers: int,
    progress: bool,
    share: Share,
) -> tuple[Tensor, Tensor]:
    """Return what is computed for each image, ``(N, …)``, and the targets, ``(N,)`` or ``(N, num_classes)``.

    The processes that share are told of all unreadable images. Collective.

    Args:
        compute: A function of a batch of images and its targets; a row for each image is kept of what it returns.
        dataset: A dataset from `open_labeled`.
        batch_size: Images at a time.
        num_workers: Loader processes.
        progress: Whether a bar is shown.
        share: Which of the batches this process computes.

    Raises:
        ValueError: No image could be read.
    """
    check_loader_options(batch_size, num_workers)
    batches = _batches(dataset, batch_size, num_workers, share, progress and share.is_first)

    @loader_errors_explained()
    def compute_batches() -> tuple[list[Any], Any]:
        made = [(key, (compute(*batch), batch[1])) for key, batch in batches if batch is not None]
        return made, dataset.unreadable

    made, unreadable = zip(*share.gather(compute_batches), strict=True)
    dataset.note_unreadable(chain.from_iterable(unreadable))
    parts = [part for _, part in sorted(chain.from_iterable(made), key=itemgetter(0))]
    if not parts:
        why = f" ({_why(dataset, share)})" if dataset.unreadable else ""
        raise ValueError(f"Expected data to hold an image that can be read, but got none{why}. Repair or replace them.")
    outputs, targets = zip(*parts, strict=True)
    return torch.cat(outputs), torch.cat(targets)


def _batches(
    dataset: LabeledImages | StreamedImages, batch_size: int, num_workers: int, share: Share, shown: bool
) -> Iterator[tuple[Any, Any]]:
    """Return the batches of this process, each with what it is sorted by among those of all; maybe show a bar."""
    if isinstance(dataset, StreamedImages):
        dataset.share(batch_size, num_workers)  # as in one process: `SharedStream` chooses among its batches
        loader = DataLoader(SharedStream(dataset, batch_size, share.owns), batch_size=None, num_workers=num_workers)
        total = -(-dataset.num_samples // (batch_size * share.num_processes))
        return iter(progress_bar(loader, unit="batch", shown=shown, total=total))
    batches: Any = share.batches(len(dataset), batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=LabeledImages.collate_fn)
    return zip(map(attrgetter("start"), batches), progress_bar(loader, unit="batch", shown=shown), strict=True)


def _why(dataset: LabeledImages | StreamedImages, share: Share) -> str:
    """Return why the first of the unreadable images is one; another process may be able to read it. Collective."""
    bad: Any = dataset.unreadable
    return next(filter(None, share.gather(lambda: dataset.why_unreadable(bad[0]))), "")


def paths_of(dataset: LabeledImages | StreamedImages, count: int) -> list[str]:
    """Return the path of each image that `collect` read; ``image 0``, ``image 1``, … for a stream, which lists none.

    Args:
        dataset: The dataset, after it was read.
        count: The number of images that were read.
    """
    if isinstance(dataset, StreamedImages):
        return [f"image {number}" for number in range(count)]
    bad = set(dataset.unreadable)
    return [dataset.filename(number, absolute=True) for number in range(len(dataset)) if number not in bad]


def unreadable_paths(dataset: LabeledImages | StreamedImages, share: Share) -> list[str]:
    """Return the files that were left out. Collective.

    Raises:
        ValueError: They are more than ``max_bad_fraction`` of the images, and more than 10.
    """
    bad: Any = dataset.unreadable
    paths = [dataset.filename(each, absolute=True) for each in bad]
    if len(paths) > dataset.max_unreadable:
        raise ValueError(
            f"Expected data to hold at most {dataset.max_unreadable} unreadable images, but got {len(paths)}, such as "
            f"{paths[0]!r} ({_why(dataset, share)}). Repair or remove them."
        )
    return paths

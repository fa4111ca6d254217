"""Labeled images for a classifier: any source, with the classifier's preprocessing and its order of classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import MultiLabelTarget
from timm.data.readers.reader import Reader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timm_accel.data.classes import in_label_order, is_multi_label
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.readers.manifest_reader import ManifestReader
from timm_accel.data.sources import Source
from timm_accel.data.streams.streamed_images import StreamedImages, create_image_dataset
from timm_accel.predict.classifier import Classifier

_MANIFESTS = (".csv", ".parquet", ".pq")


class ModelTarget:
    """Make of the data's label, or its list of labels, the model's target.

    Args:
        numbers: The model's number of each of the data's classes.
        multi_label: Whether targets are ``(num_classes,)`` of 0 and 1.
    """

    def __init__(self, numbers: Sequence[int], multi_label: bool) -> None:
        self.numbers = list(numbers)
        self._several = MultiLabelTarget(len(self.numbers)) if multi_label else None

    def __call__(self, label: Any) -> Any:
        if self._several is None:
            return self.numbers[int(label)]
        return self._several([self.numbers[int(each)] for each in label])


def open_labeled(
    classifier: Classifier, reader: Any, transform: Callable[[Any], Any]
) -> LabeledImages | StreamedImages:
    """Return the images with the model's targets; what cannot be read is left out, but not of a stream.

    Args:
        classifier: The classifier.
        reader: What `open_reader` returned.
        transform: What makes an image of a decoded image.

    Raises:
        ValueError: The classes are not the model's, or an image has one label where the model has several.
    """
    several = is_multi_label(reader)
    if several != classifier.multi_label:
        kind, wanted = ("several labels", "one label") if several else ("one label", "several labels")
        raise ValueError(
            f"Expected data to have {wanted} an image, as the classifier, but got {kind}. "
            f"Open it with load_classifier(…, multi_label={several})."
        )
    numbers = model_numbers(classifier, in_label_order(reader.class_to_idx))
    return create_image_dataset(
        reader,
        transform,
        ModelTarget(numbers, several),
        prepare=classifier.prepare,
        on_error="raise" if hasattr(reader, "share") else "skip",
    )


def open_reader(data: Any, split: str | None) -> Any:
    """Return the timm reader of labeled images.

    Args:
        data: Anything that `Source` takes, a `Source`, or a dataset.
        split: The split; None for the whole, undivided.

    Raises:
        FileNotFoundError: There are no such data.
        ValueError: There is no such split.
    """
    reader = getattr(data, "reader", data)  # ours and timm's datasets know their images as they are on the disk
    if isinstance(reader, Reader):
        return reader
    source = data if isinstance(data, Source) else Source(data)
    if split is not None and not isinstance(data, Dataset):
        return source.open(split)
    if not isinstance(source.data, Dataset) and Path(source.data).suffix.lower() in _MANIFESTS:
        return ManifestReader(source.data, root=source.root)
    return Source({"val": source.data}).open("val")  # the parts of a mapping are never divided


def model_numbers(classifier: Classifier, names: list[str]) -> list[int]:
    """Return the model's number of each class of the data, by their names.

    Args:
        classifier: The classifier.
        names: Those of the data, in the order of its labels.

    Raises:
        ValueError: The classes differ; the message names which.
    """
    known = classifier.class_names
    if set(names) == set(known):
        return [known.index(name) for name in names]
    if not classifier.is_named and len(names) == len(known):
        return list(range(len(names)))
    missing, extra = sorted(set(known) - set(names)), sorted(set(names) - set(known))
    raise ValueError(
        f"Expected data to have the model's {len(known)} classes, but got {len(names)}: it lacks {_some(missing)} and "
        f"has {_some(extra)} besides. Use the data's own model, or name its classes as the model does."
    )


def _some(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{names[:most]}{more}" if names else "none"


def collect(
    compute: Callable[[Tensor], Tensor],
    dataset: LabeledImages | StreamedImages,
    *,
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Return what is computed of each image, ``(N, num_classes)``, and the targets, ``(N,)`` or ``(N, num_classes)``.

    Args:
        compute: Takes a batch of images.
        dataset: What `open_labeled` returned.
        batch_size: Images at a time.
        num_workers: Loader processes.
        progress: Whether a bar is shown.

    Raises:
        ValueError: No image could be read.
    """
    if isinstance(dataset, StreamedImages):
        dataset.share(batch_size, num_workers)  # all of it is read here, also by a process of a launch
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=LabeledImages.collate_fn)
    parts = [
        (compute(images), targets) for images, targets in filter(None, tqdm(loader, unit="batch", disable=not progress))
    ]
    if not parts:
        why = "" if isinstance(dataset, StreamedImages) else f" ({dataset.why_unreadable(0)})"
        raise ValueError(f"Expected data to hold an image that can be read, but got none{why}. Repair or replace them.")
    outputs, targets = zip(*parts, strict=True)
    return torch.cat(outputs), torch.cat(targets)


def unreadable_paths(dataset: LabeledImages | StreamedImages) -> list[str]:
    """Return the files that were left out; a stream stops at the first."""
    if isinstance(dataset, StreamedImages):
        return []
    return [dataset.filename(number, absolute=True) for number in dataset.unreadable]

"""Read Hugging Face datasets, whatever their columns are called."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from timm.data.readers._hfds import get_class_labels
from timm.data.readers.reader import Reader

from timm_accel.data.classes import class_name, in_label_order
from timm_accel.data.labels import check_labels
from timm_accel.data.readers.dataset_reader import IMAGE_COLUMNS, LABEL_COLUMNS, as_image
from timm_accel.data.readers.filename_reader import number_classes


class HfReader(Reader):
    """Read the images and labels of a ``datasets.Dataset``.

    Args:
        dataset: The dataset. Its columns are found by `find_columns`.
        names: The names of the classes, from `names_of_classes`.
        where: What the dataset is called, for the names of images and for messages.

    Raises:
        ValueError: There is no column of images or of labels, or a label is no class.
    """

    def __init__(self, dataset: Any, names: list[str], where: str) -> None:
        super().__init__()
        from datasets import Image

        self.image_key, label_key = find_columns(dataset.features, where)
        self.where = where
        self.dataset = dataset.with_format(None).cast_column(self.image_key, Image(decode=False))
        self.class_to_idx = {name: label for label, name in enumerate(names)}
        self.labels = check_labels(self.dataset[label_key][:], names, self._filename)
        self.origins = np.arange(len(dataset))  # paths are only names here, and may repeat

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        label, image = self.labels[index], self.dataset[index][self.image_key]
        if image is None:
            raise OSError("an empty cell")
        return as_image(image), label if isinstance(label, list) else int(label)

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return (self.dataset[index][self.image_key] or {}).get("path") or f"{self.where}[{index}]"


def is_hf_dataset(data: Any) -> bool:
    """Return whether data is a ``datasets.Dataset``, without importing the library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, library.Dataset)


def open_hf(parts: Mapping[str, Any], split: str, where: str) -> HfReader:
    """Return the reader of one of the splits of a dataset; the classes are those of all splits.

    Args:
        parts: The ``datasets.Dataset`` of each split.
        split: The split to read.
        where: What the dataset is called.
    """
    return HfReader(parts[split], names_of_classes(parts, where), f"{where} {split}")


def names_of_classes(parts: Mapping[str, Any], where: str) -> list[str]:
    """Return the names of a dataset's classes: of its features, else the labels that are text, or '0', '1', ….

    Args:
        parts: The ``datasets.Dataset`` of each split.
        where: What the dataset is called.

    Raises:
        ValueError: The splits name their classes differently.
    """
    keys = {split: find_columns(part.features, where)[1] for split, part in parts.items()}
    named = {split: in_label_order(get_class_labels(part, keys[split])) for split, part in parts.items()}
    known = [names for names in named.values() if names]
    if any(names != known[0] for names in known):
        raise ValueError(
            f"Expected all splits of {where} to name the same classes, but got "
            f"{', '.join(f'{split}: {names[:10]}' for split, names in named.items())}. Cast their labels to the same "
            "ClassLabel."
        )
    return (
        known[0]
        if known
        else found_names(label for split, part in parts.items() for label in part.with_format(None)[keys[split]][:])
    )


def found_names(labels: Any) -> list[str]:
    """Return the names of classes that nobody named: the labels that are text, or '0', '1', … up to the largest.

    Args:
        labels: Labels, or lists of them, of all splits.
    """
    flat = {each for label in labels for each in (label if isinstance(label, list) else [label]) if each is not None}
    if words := {class_name(each) for each in flat if isinstance(each, str)}:
        return list(number_classes(words))
    return [str(number) for number in range(int(max(flat, default=-1)) + 1)]


def find_columns(features: Any, where: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels.

    Images are in the only column of that type, or in ``image``, ``img``, …; labels in ``label``, ``labels``,
    ``fine_label``, ``target``, or otherwise in the only column with named classes.

    Args:
        features: The features of a Hugging Face dataset.
        where: What the dataset is called.

    Raises:
        ValueError: There are no such columns.
    """
    from datasets import Image

    columns = dict(features or {})
    typed = [name for name, feature in columns.items() if isinstance(feature, Image)]
    image = typed[0] if len(typed) == 1 else _first(IMAGE_COLUMNS, typed or columns)
    classes = [name for name, feature in columns.items() if hasattr(getattr(feature, "feature", feature), "names")]
    label = _first(LABEL_COLUMNS, columns) or (classes[0] if len(classes) == 1 else None)
    if image is None or label is None or (not typed and getattr(columns[image], "dtype", "") == "int64"):
        raise ValueError(
            f"Expected the columns 'image' and 'label' in {where}, or {', '.join(map(repr, IMAGE_COLUMNS[1:]))} and "
            f"{', '.join(map(repr, LABEL_COLUMNS[1:]))}, but got {sorted(columns)}. Rename them in the dataset."
        )
    return image, label


def _first(names: Any, known: Any) -> str | None:
    return next((name for name in names if name in known), None)

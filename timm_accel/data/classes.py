"""Find the class names and the labels of a dataset or a reader."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from unicodedata import normalize

import numpy as np
from timm.data import MultiLabelTarget
from timm.data.readers.reader import Reader
from torch.utils.data import ConcatDataset, Subset

from timm_accel.data.labels import UNLABELED, are_lists, check_labels
from timm_accel.data.seeding import SeededDataset

MAX_CLASSES = 1_000_000
"""The number of classes above which a label is taken for something else, such as the id of an image."""


def class_name(name: Any) -> str:
    """Return a name as text in Unicode's form NFC, so that equal names compare equal.

    macOS writes ``é`` in the names of folders as two characters (NFD), and most tables hold one (NFC). Several names of
    one class, as torchvision's ImageNet has them, are joined by commas.
    """
    return normalize("NFC", ", ".join(map(str, name)) if isinstance(name, list | tuple) else str(name))


def numbered_names(largest: Any) -> list[str]:
    """Return names for classes that nobody named: '0', '1', … up to the largest label.

    Args:
        largest: The largest label; -1 for no classes.

    Raises:
        ValueError: It is too large for the number of a class.
    """
    if largest >= MAX_CLASSES:
        raise ValueError(
            f"Expected labels to be numbers of classes, from 0 to below {MAX_CLASSES:,}, but got {largest}. Number the "
            "classes 0, 1, 2, …, or name them."
        )
    return [str(number) for number in range(int(largest) + 1)]


def in_label_order(class_to_idx: Mapping[Any, int]) -> list[str]:
    """Return the names in the order of their labels; the name of label n is at index n.

    Args:
        class_to_idx: The label of each name. Names with the same label are joined by commas.

    Raises:
        ValueError: The labels are not 0, 1, 2, … without a gap, or two classes have the same name.
    """
    named: dict[Any, list[str]] = {}
    for name, label in class_to_idx.items():
        named.setdefault(label, []).append(class_name(name))
    if not all(isinstance(label, int | np.integer) and 0 <= label < len(named) for label in named):
        raise ValueError(
            f"Expected class_to_idx to number the classes 0, 1, 2, … without a gap, but got {_some(class_to_idx)}. "
            "Number them so, or pass a target_transform that does."
        )
    return _distinct([", ".join(dict.fromkeys(named[label])) for label in range(len(named))])


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for label, name in enumerate(names) if name in names[:label])
        raise ValueError(
            f"Expected each class to have another name, but got {twice!r} for two classes, perhaps in two forms of "
            "Unicode (NFC and NFD). Rename one, or put their images together."
        )
    return names


def _some(class_to_idx: Mapping[Any, int], max_names: int = 10) -> str:
    shown = ", ".join(f"{name!r}: {label}" for name, label in list(class_to_idx.items())[:max_names])
    return f"{{{shown}{', …' if len(class_to_idx) > max_names else ''}}}"


def class_names(dataset: Any) -> list[str] | None:
    """Return the names in the order of their labels, or None when the dataset has none.

    The names are read from ``class_names`` (timm_accel), ``reader.class_to_idx`` (timm), ``class_to_idx`` or
    ``classes`` (torchvision). They follow the ``target_transform`` of a dataset. A torch ``Subset`` has the names of
    its dataset, and a ``ConcatDataset`` those of its datasets.

    Raises:
        ValueError: ``classes`` and ``class_to_idx`` hold different names, labels have a gap, or the datasets of a
            ``ConcatDataset`` have different names.
    """
    while isinstance(dataset, SeededDataset | Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        return _names_of_all(dataset.datasets)
    if (names := getattr(dataset, "class_names", None)) is not None:
        return [class_name(name) for name in names]
    class_to_idx = transformed(_class_to_idx(dataset), dataset)
    return in_label_order(class_to_idx) if class_to_idx else None


def _names_of_all(datasets: list[Any]) -> list[str] | None:
    found = [names for names in map(class_names, datasets) if names is not None]
    for names in found[1:]:
        if names != found[0]:
            raise ValueError(
                f"Expected all datasets of a ConcatDataset to have the same classes, but got {found[0][:10]} and "
                f"{names[:10]}. Give them the same class_to_idx."
            )
    return found[0] if found else None


def _class_to_idx(dataset: Any) -> Mapping[Any, int]:
    """Return the label of each name, before the ``target_transform``; empty where there are no names."""
    if class_to_idx := getattr(getattr(dataset, "reader", None), "class_to_idx", None):
        return class_to_idx
    names, class_to_idx = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    names = list(names) if isinstance(names, list | tuple | np.ndarray) else None
    if names and all(isinstance(name, list | tuple) for name in names):
        return _of_synonyms(names)
    if not (isinstance(class_to_idx, Mapping) and class_to_idx):
        distinct = _distinct([class_name(name) for name in names or ()])
        return {name: label for label, name in enumerate(distinct)}
    if names is not None and {class_name(name) for name in names} != {class_name(name) for name in class_to_idx}:
        raise ValueError(
            f"Expected classes and class_to_idx of a {type(dataset).__name__} to hold the same names, but got "
            f"classes={names[:10]} and class_to_idx={_some(class_to_idx)}. Correct one, or remove it."
        )
    return class_to_idx


def _of_synonyms(classes: list[Any]) -> dict[str, int]:
    """Number classes with several names each; torchvision's ImageNet has two classes 'crane'."""
    names = [class_name(each) for each in classes]
    counts = Counter(names)
    return {name if counts[name] == 1 else f"{name} ({label})": label for label, name in enumerate(names)}


def transformed(class_to_idx: Mapping[Any, int], dataset: Any) -> dict[Any, int]:
    """Return the label of each name after the ``target_transform`` of a dataset.

    Args:
        class_to_idx: The labels before.
        dataset: The dataset. timm's `MultiLabelTarget` changes no label.
    """
    transform: Callable[[Any], Any] | None = getattr(dataset, "target_transform", None)
    if transform is None or isinstance(transform, MultiLabelTarget):
        return dict(class_to_idx)
    found = {}
    for name, label in class_to_idx.items():
        try:
            new = int(check_labels([transform(label)], None, str, dense=True)[0])
        except (LookupError, TypeError, ValueError):  # a class that the dataset does not use, or no integer
            continue
        if new >= 0:
            found[name] = new
    return found


def transformed_labels(labels: np.ndarray, dataset: Any) -> np.ndarray:
    """Return labels after the ``target_transform`` of a dataset, which is called once for each class.

    Args:
        labels: Labels from `labels_of`.
        dataset: The dataset.

    Raises:
        ValueError: The ``target_transform`` does not return a label.
    """
    transform = getattr(dataset, "target_transform", None)
    if transform is None or isinstance(transform, MultiLabelTarget) or are_lists(labels):
        return labels
    classes, inverse = np.unique(labels, return_inverse=True)
    found = [label if label == UNLABELED else transform(label) for label in classes.tolist()]
    return check_labels(found, None, lambda index: f"label {classes[index]}", dense=True)[inverse]


def lists_labels(reader: Any) -> bool:
    """Return whether a timm reader has the labels of its images without opening a file."""
    if getattr(reader, "labels", None) is not None or hasattr(reader, "iter_targets"):
        return True
    samples = getattr(reader, "samples", None)  # those of timm's readers are pairs, others may be paths alone
    return samples is not None and all(isinstance(each, tuple | list) and len(each) == 2 for each in samples)


def labels_of(reader: Any) -> np.ndarray:
    """Return the label of each image of a timm reader, ``(N,)``; an array of lists for a multi-label reader.

    Raises:
        TypeError: The reader does not list its labels.
        ValueError: A label is no class; the message has the first three images.
    """
    if not lists_labels(reader):
        raise TypeError(
            "Expected reader to list its labels, as an attribute labels or as samples of (path, label), but got "
            f"{type(reader).__name__} without them. Set self.labels in it, one for each image."
        )
    if (labels := getattr(reader, "labels", None)) is None:
        labels = (
            list(reader.iter_targets()) if hasattr(reader, "iter_targets") else [each for _, each in reader.samples]
        )
    class_to_idx = getattr(reader, "class_to_idx", None)
    return check_labels(labels, in_label_order(class_to_idx) if class_to_idx else None, reader.filename)


def is_multi_label(data: Any) -> bool:
    """Return whether a dataset or a timm reader is multi-label.

    The targets of a multi-label dataset are ``(num_classes,)`` of 0 and 1, since its ``target_transform`` is timm's
    `MultiLabelTarget`. The labels of a multi-label reader are lists.

    Args:
        data: Any dataset, wrapped by a trainer or not, or a reader. None is not multi-label.
    """
    if isinstance(data, Reader):
        return are_lists(getattr(data, "labels", ()))
    return isinstance(getattr(data, "target_transform", None), MultiLabelTarget)

"""Find the class names and the labels of a dataset or a reader."""

from typing import Any

import numpy as np
from timm.data import MultiLabelTarget
from timm.data.readers.reader import Reader


def in_label_order(class_to_idx: dict[str, int]) -> list[str]:
    """Return the names in the order of their labels."""
    return sorted(class_to_idx, key=class_to_idx.__getitem__)


def labels_of(reader: Any) -> np.ndarray:
    """Return the label of each image of a timm reader, ``(N,)``; an array of lists for a multi-label reader."""
    if (labels := getattr(reader, "labels", None)) is None:
        labels = (
            list(reader.iter_targets()) if hasattr(reader, "iter_targets") else [each for _, each in reader.samples]
        )
    if _are_lists(labels):
        lists = np.empty(len(labels), dtype=object)
        lists[:] = labels
        return lists
    return np.asarray(labels)


def is_multi_label(data: Any) -> bool:
    """Return whether a dataset or a timm reader is multi-label.

    The targets of a multi-label dataset are ``(num_classes,)`` of 0 and 1, since its ``target_transform`` is timm's
    `MultiLabelTarget`. The labels of a multi-label reader are lists.

    Args:
        data: Any dataset, wrapped by a trainer or not, or a reader. None is not multi-label.
    """
    if isinstance(data, Reader):
        return _are_lists(getattr(data, "labels", ()))
    return isinstance(getattr(data, "target_transform", None), MultiLabelTarget)


def _are_lists(labels: Any) -> bool:
    return len(labels) > 0 and isinstance(labels[0], list)


def class_names(dataset: Any) -> list[str] | None:
    """Return the names in the order of their labels, or None when the dataset has none.

    The names are read from ``class_names`` (timm_accel), ``reader.class_to_idx`` (timm) or ``classes`` (torchvision).
    """
    if (names := getattr(dataset, "class_names", None)) is not None:
        return list(names)
    if class_to_idx := getattr(getattr(dataset, "reader", None), "class_to_idx", None):
        return in_label_order(class_to_idx)
    names = getattr(dataset, "classes", None)
    return None if names is None else [str(name) for name in names]

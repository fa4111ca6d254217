"""Readers over a part of another reader's images, or with its labels in another form."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from timm.data.readers.reader import Reader

from timm_accel.data.classes import in_label_order, is_multi_label, labels_of
from timm_accel.data.streams.stream_reader import StreamReader

_logger = logging.getLogger(__name__)


class ReaderPart(Reader):
    """Some of the images of a reader.

    Args:
        reader: The reader of all images.
        numbers: The indices of the images to keep, ``(N,)``.
    """

    def __init__(self, reader: Any, numbers: np.ndarray) -> None:
        super().__init__()
        self.reader, self.numbers = reader, numbers
        self.class_to_idx = reader.class_to_idx
        self.labels = labels_of(reader)[numbers]

    def __getitem__(self, index: int) -> Any:
        return self.reader[int(self.numbers[index])]

    def __len__(self) -> int:
        return len(self.numbers)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.reader.filename(int(self.numbers[index]), basename, absolute)


class RelabeledReader(Reader):
    """The images of a reader with labels in another order of classes, or with a list of one label for each label.

    Args:
        reader: The reader.
        names: The classes in the order of the new labels.
        multi_label: Whether labels are lists.
    """

    def __init__(self, reader: Any, names: Sequence[str], multi_label: bool) -> None:
        super().__init__()
        self.reader = reader
        self.class_to_idx = {name: label for label, name in enumerate(names)}
        numbers = [self.class_to_idx[name] for name in in_label_order(reader.class_to_idx)]
        lists = [each if isinstance(each, list) else [int(each)] for each in labels_of(reader)]
        found = [[numbers[label] for label in each if label >= 0] for each in lists]
        self.labels = found if multi_label else [each[0] if each else -1 for each in found]

    def __getitem__(self, index: int) -> Any:
        return self.reader[index][0], self.labels[index]

    def __len__(self) -> int:
        return len(self.reader)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.reader.filename(index, basename, absolute)


def alike(train: Any, evaluation: Any, may_lack_classes: bool = False) -> tuple[Any, Any]:
    """Return the readers of two splits with the same order of classes, and both multi-label if one is.

    Readers whose classes differ, and streams, are returned as they are.

    Args:
        train: The reader of the training split, whose order counts.
        evaluation: The reader of the other split.
        may_lack_classes: Whether the other split may lack some of the classes; the log has a line about them.
    """
    readers = (train, evaluation)
    if any(isinstance(reader, StreamReader) or not getattr(reader, "class_to_idx", None) for reader in readers):
        return readers
    names, others = (in_label_order(reader.class_to_idx) for reader in readers)
    missing = [name for name in names if name not in set(others)]
    if not set(others) <= set(names) or (missing and not may_lack_classes):
        return readers
    if missing:
        _logger.warning("The evaluation images are of %d of %d classes, without %s.", len(others), len(names), missing)
    multi_label = any(map(is_multi_label, readers))
    first, second = (
        reader
        if known == names and is_multi_label(reader) == multi_label
        else RelabeledReader(reader, names, multi_label)
        for reader, known in zip(readers, (names, others), strict=True)
    )
    return first, second

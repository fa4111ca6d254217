"""Read the label of an image from its file name, and number the classes of all readers."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from timm_accel.data.classes import class_name
from timm_accel.data.image_files import FileCounts, list_images
from timm_accel.data.readers.regular_files import check_regular
from timm_accel.messages import nearest


class FilenameReader(ReaderImageFolder):
    r"""Extend timm's reader of an image folder: labels come from the names of the files, not of their folders.

    The reader searches `root` and every folder below it for images, as `FolderReader` does. Files and classes are in
    natural order, ``2`` before ``10``, on every machine.

        dataset = ImageDataset("pets/images", reader=FilenameReader("pets/images", r"(.+)_\d+"))

    Args:
        root: The folder.
        pattern: A regular expression, searched for in the name of each file. Its one group is the label, or the group
            named ``label`` where there are several: ``(.+)_\d+`` finds ``Abyssinian`` in ``Abyssinian_12.jpg``.
        class_to_idx: The number of each class, such as another reader's ``class_to_idx``; None to number the labels
            that occur.

    Attributes:
        files: How many files are used and left out.

    Raises:
        FileNotFoundError: `root` is missing or holds no images.
        TypeError: `pattern` is not text, or `class_to_idx` is not a map from text.
        ValueError: `pattern` is not a regular expression, has no such group or does not match every file, or a label is
            not in `class_to_idx`.

    Source: ``timm.data.readers.reader_image_folder``.
    """

    def __init__(self, root: str | Path, pattern: str, class_to_idx: Mapping[str, int] | None = None) -> None:
        Reader.__init__(self)  # not that of ReaderImageFolder, which labels by folder
        expression = _compile(pattern)
        self.root = os.path.abspath(root)
        paths, self.files = _find_images(root)
        labels = [_label(expression, os.path.basename(path)) for path in paths]
        self._check_all_match(pattern, paths, labels)
        if class_to_idx is None:
            class_to_idx = number_classes(labels)
        check_classes(zip(labels, paths, strict=True), class_to_idx)
        self.class_to_idx = {class_name(name): number for name, number in class_to_idx.items()}
        self.samples = [(path, self.class_to_idx[class_name(label)]) for path, label in zip(paths, labels, strict=True)]

    def __getitem__(self, index: int) -> Any:
        check_regular(self.samples[index][0])
        return super().__getitem__(index)

    def _check_all_match(self, pattern: str, paths: list[str], labels: list[str]) -> None:
        unmatched = [path for path, label in zip(paths, labels, strict=True) if not label]
        if len(unmatched) == len(paths):
            names = " and ".join(repr(os.path.basename(path)) for path in paths[:2])
            raise ValueError(
                f"Expected pattern to find the label in the names of the files, but got {pattern!r}, which finds none "
                f"in {len(paths)} such as {names}. Correct it."
            )
        if unmatched:
            first = ", ".join(repr(os.path.relpath(path, self.root)) for path in unmatched[:3])
            raise ValueError(
                f"Expected pattern to find a label in the name of every file, but got {pattern!r}, which finds none in "
                f"{len(unmatched)} of {len(paths)}: {first}{', …' if len(unmatched) > 3 else ''}. Widen it, or move "
                "these files out of the folder."
            )


def number_classes(names: Iterable[str]) -> dict[str, int]:
    """Return the label of each class, in natural order: ``2`` before ``10``, without regard to case.

    Names are in Unicode's form NFC, so the two forms of ``é`` are one class.

    Names that are equal in timm's order, such as ``cat`` and ``Cat``, are sorted by their characters. timm's readers
    (1.0.31) leave them in the order of a Python set, which differs between processes.

    Args:
        names: The classes, in any order and any number of times.

    Source: ``timm.utils.misc.natural_key``.
    """
    distinct = {class_name(name) for name in names}
    return {name: index for index, name in enumerate(sorted(distinct, key=_natural_order))}


def check_classes(labels_and_places: Iterable[tuple[str, str]], class_to_idx: Any) -> None:
    """Raise an error for a label that is not a class; it names the place and the nearest classes.

    Args:
        labels_and_places: Each label, with its file or row.
        class_to_idx: The number of each class.

    Raises:
        TypeError: `class_to_idx` is not a map from text.
        ValueError: A label is not in `class_to_idx`.
    """
    if not isinstance(class_to_idx, Mapping) or not all(isinstance(name, str) for name in class_to_idx):
        raise TypeError(
            f"Expected class_to_idx to be a map from names, which are text, to numbers, but got {class_to_idx!r}. "
            "Pass another reader's class_to_idx, or one such as {'cat': 0, 'dog': 1}."
        )
    known = {class_name(name) for name in class_to_idx}
    for label, place in labels_and_places:
        if class_name(label) not in known:
            raise ValueError(
                f"Expected every label to be in class_to_idx, but got {label!r} of {place}. "
                f"{nearest(label, class_to_idx)} Correct the label, or add it to class_to_idx."
            )


def _compile(pattern: str) -> re.Pattern[str]:
    example = r"For 'Abyssinian_12.jpg' it is '(.+)_\d+'."
    if not isinstance(pattern, str):
        raise TypeError(f"Expected pattern to be text, a regular expression, but got {pattern!r}. {example}")
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"Expected pattern to be a regular expression, but got {pattern!r} ({error}). {example}"
        ) from error
    if expression.groups != 1 and "label" not in expression.groupindex:
        raise ValueError(
            "Expected pattern to have one group, the label in parentheses, or one named 'label' as in '(?P<label>.+)', "
            f"but got {pattern!r} with {expression.groups} groups. {example}"
        )
    return expression


def _find_images(root: str | Path) -> tuple[list[str], FileCounts]:
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"Expected root to be a folder of images, but got {str(root)!r}, which is not a folder. Correct the path."
        )
    found, counts = list_images(root)
    if not found:
        raise FileNotFoundError(f"Expected root to be a folder of images, but got {str(root)!r}, {counts.why_none()}")
    return [os.path.join(os.path.abspath(root), path) for path in found], counts


def _label(expression: re.Pattern[str], name: str) -> str:
    """Return the label, or an empty text where there is none."""
    match = expression.search(name)
    return "" if match is None else match["label" if "label" in expression.groupindex else 1] or ""


def _natural_order(name: str) -> tuple[Any, str]:
    return natural_key(name), name

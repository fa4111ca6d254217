"""The one check of labels, wherever they enter: integers from 0 to below the number of classes, or lists of them."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from numbers import Real
from types import MappingProxyType
from typing import Any
from unicodedata import normalize

import numpy as np

UNLABELED = -1
"""The label of an image without one, as in the test splits of Hugging Face."""
_WRONG = -(2**31)  # stands for a value that is no label


def check_labels(
    labels: Any, names: Sequence[str] | None, place: Callable[[int], str], *, dense: bool = False
) -> np.ndarray:
    """Return labels as integers, ``(N,)``, or as an array of lists of integers where they are multi-label.

    A label may be any integer or boolean, a float without fraction, or the name of a class. None and NaN are -1.
    If all labels are -1, or all lists are empty, the images are unlabeled: they can be predicted, but neither trained
    nor evaluated, see `require_labels`.

    Args:
        labels: The label of each image.
        names: The names of the classes; None where the classes are unknown and labels have no upper bound.
        place: The name of an image, by its index.
        dense: Whether a vector is a target ``(num_classes,)`` of 0 and 1, as torch's datasets have; otherwise it is a
            list of labels. Vectors that all have a single 1 are single-label.

    Raises:
        ValueError: A label is no class; the message has the first three images.
    """
    integers = _as_integers(labels)
    if integers is None:
        numbers = {name: label for label, name in enumerate(names or ())}
        integers = _gathered([label_number(label, dense, numbers) for label in labels], dense)
    lists = integers.dtype == object
    bound = np.iinfo(np.int64).max if names is None else len(names)
    if lists:
        wrong = [index for index, each in enumerate(integers) if any(not 0 <= label < bound for label in each)]
    else:
        wrong = np.flatnonzero((integers < 0) | (integers >= bound)).tolist()
    if wrong and not (not lists and (integers == UNLABELED).all()):
        raise _refusal(labels, names, place, wrong, len(integers))
    return integers


def check_label(label: Any, names: Sequence[str], place: str) -> Any:
    """Return the label of one image as `check_labels` does; for streams and readers that do not list their labels.

    Raises:
        ValueError: It is no class, or the image has none.
    """
    found = label_number(label, numbers={name: number for number, name in enumerate(names)})
    if any(not 0 <= each < len(names) for each in (found if isinstance(found, list) else [found])):
        raise _refusal([label], names, lambda _: place, [0], 1)
    return found


def are_lists(labels: Any) -> bool:
    """Return whether labels are lists, as those of multi-label readers are."""
    return len(labels) > 0 and isinstance(labels[0], list)


def is_unlabeled(labels: np.ndarray) -> bool:
    """Return whether no image has a label, for labels from `check_labels`."""
    if labels.dtype == object:
        return len(labels) > 0 and not any(labels)
    return len(labels) > 0 and bool((labels == UNLABELED).all())


def require_labels(labels: np.ndarray, place: Callable[[int], str]) -> None:
    """Raise a `ValueError` where no image has a label.

    Args:
        labels: Labels from `check_labels`.
        place: The name of an image, by its index.
    """
    if is_unlabeled(labels):
        raise ValueError(
            f"Expected images with labels, since these are needed to train and to evaluate, but got {len(labels)} "
            f"images such as {place(0)!r} that have none. Predict them with load_classifier(…).predict(…), or use a "
            "split with labels."
        )


def label_number(label: Any, dense: bool = False, numbers: Mapping[str, int] = MappingProxyType({})) -> int | list[int]:
    """Return a label as an integer or a list of them; a value that is no label is a large negative integer.

    Args:
        label: The label of an image.
        dense: Whether a vector is a target of 0 and 1.
        numbers: The label of each class name.
    """
    if hasattr(label, "tolist"):  # of numpy or torch
        label = label.tolist()
    if not isinstance(label, list | tuple):
        return _scalar(label, numbers)
    found = [_scalar(each, numbers) for each in label]
    if not dense:
        return found
    if len(found) == 1:
        return found[0]
    return [label for label, is_one in enumerate(found) if is_one] if {*found} <= {0, 1} else _WRONG


def _scalar(label: Any, numbers: Mapping[str, int]) -> int:
    if isinstance(label, str):
        return numbers.get(normalize("NFC", label), _WRONG)
    if label is None or (isinstance(label, Real) and isnan(label)):
        return UNLABELED
    return int(float(label)) if isinstance(label, Real) and float(label).is_integer() else _WRONG


def _as_integers(labels: Any) -> np.ndarray | None:
    """Return labels that are integers throughout; None for any others."""
    try:
        array = np.asarray(labels)
    except (ValueError, TypeError):  # lists of several lengths
        return None
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iub" else None


def _gathered(found: list[int | list[int]], dense: bool) -> np.ndarray:
    """Return integers, or an array of lists where any label is a list that is not one-hot."""
    if dense and all(isinstance(each, int) or len(each) == 1 for each in found):
        found = [each if isinstance(each, int) else each[0] for each in found]
    if not any(isinstance(each, list) for each in found):
        return np.array(found, dtype=np.int64)
    lists = np.empty(len(found), dtype=object)
    lists[:] = [each if isinstance(each, list) else [] if each == UNLABELED else [each] for each in found]
    return lists


def _refusal(
    labels: Any, names: Sequence[str] | None, place: Callable[[int], str], wrong: list[int], count: int
) -> ValueError:
    shown = ", ".join(f"{_shown(labels[index])} for {place(index)!r}" for index in wrong[:3])
    more = f", … ({len(wrong)} of {count} images)" if len(wrong) > 3 else ""
    bound = (
        "integers of at least 0" if names is None else f"integers from 0 to {len(names) - 1}, for {len(names)} classes"
    )
    return ValueError(f"Expected labels to be {bound}, but got {shown}{more}. Correct them, or leave these images out.")


def _shown(label: Any) -> str:
    text = repr(label.tolist() if hasattr(label, "tolist") else label)
    return text if len(text) <= 60 else f"{text[:60]}…"

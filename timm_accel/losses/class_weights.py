"""Class weights of a loss: computed from counts, listed, or by name."""

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any, Literal

import torch
from timm.loss import AsymmetricLossMultiLabel, BinaryCrossEntropy, compute_class_weights
from torch import nn

from timm_accel.data.classes import class_names
from timm_accel.messages import nearest

Weights = Literal["auto"] | Sequence[float] | Mapping[str, float]
_WEIGHTED = (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, BinaryCrossEntropy, AsymmetricLossMultiLabel)


def resolve_weights(argument: str, given: Weights, dataset: Any, method: str) -> torch.Tensor:
    """Return the weight of each class, ``(num_classes,)``.

    Args:
        argument: The name of the user's argument, for messages.
        given: ``"auto"``, one number for each class in the order of their labels, or numbers by the names of classes;
            classes that are not named weigh 1.
        dataset: The training dataset; a list of weights needs none.
        method: How ``"auto"`` computes them: a method of ``timm.loss.compute_class_weights``.

    Raises:
        TypeError: `given` is none of these, or the dataset has no counts or names of its classes.
        ValueError: A number is not positive, there are too few or too many numbers, or a class is unknown.

    Source: ``timm.loss.compute_class_weights``.
    """
    names = class_names(dataset)
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(
                f"Expected {argument} to be 'auto', a list, or numbers by the names of classes, but got {given!r}. "
                "Choose one of them."
            )
        counts, num_images = class_counts(f"{argument}='auto'", dataset)
        return compute_class_weights(counts, num_images, method)[1]
    if isinstance(given, Mapping):
        return _checked(argument, _by_name(argument, given, names))
    weights = _checked(argument, list(given))
    if names is not None and len(weights) != len(names):
        raise ValueError(
            f"Expected {argument} to have one number for each of the {len(names)} classes, but got {len(weights)}. "
            "Give them by name: {'name': weight}."
        )
    return weights


def refuse_other_weights(argument: str, loss: Any, num_classes: int | None) -> None:
    """Raise when a loss of torch or timm has weights for another number of classes.

    Args:
        argument: The name of the user's argument, for the message.
        loss: The loss.
        num_classes: The number of classes; None where it is unknown.

    Raises:
        ValueError: The numbers differ.
    """
    if num_classes is None or not isinstance(loss, _WEIGHTED):
        return
    for name in ("weight", "pos_weight"):
        weights = getattr(loss, name, None)
        found = num_classes if weights is None else weights.shape[-1] if weights.ndim else 1
        if found != num_classes and (found > 1 or isinstance(loss, nn.CrossEntropyLoss)):  # else one for all
            raise ValueError(
                f"Expected {argument} to weigh each of the {num_classes} classes, but got {found} numbers as its "
                f"{name}. Pass one for each class."
            )


def class_counts(what: str, dataset: Any) -> tuple[list[int], int]:
    """Return the number of images of each class, and of all images.

    Args:
        what: What needs the counts, for the message.
        dataset: The training dataset.

    Raises:
        TypeError: The dataset has no ``class_sizes``.
    """
    sizes = getattr(dataset, "class_sizes", None)
    if not sizes:
        raise TypeError(
            f"Expected dataset to have class_sizes, since {what} counts the images of each class, but got "
            f"{type(dataset).__name__}. Pass the training dataset of create_datasets(), or a list of numbers."
        )
    return list(sizes.values()), len(dataset)


def _by_name(argument: str, given: Mapping[str, float], names: list[str] | None) -> list[float]:
    if names is None:
        raise TypeError(
            f"Expected dataset to name its classes, since {argument} go by name, but got {dict(given)!r} without one. "
            "Pass dataset=…, or a list in the order of the labels."
        )
    for name in given:
        if name not in names:
            raise ValueError(f"Expected {argument} to name classes, but got {name!r}. {nearest(name, names)}")
    return [given.get(name, 1.0) for name in names]


def _checked(argument: str, weights: list[float]) -> torch.Tensor:
    for weight in weights:
        if isinstance(weight, bool) or not (isinstance(weight, Real) and isfinite(weight) and weight > 0):
            raise ValueError(f"Expected {argument} to be positive numbers, but got {weight!r}. 1 changes nothing.")
    return torch.tensor([float(weight) for weight in weights])

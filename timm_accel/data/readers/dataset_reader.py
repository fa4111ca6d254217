"""A torch dataset as a timm reader."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.readers.reader import Reader
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms.functional import to_pil_image

from timm_accel.data.classes import class_names, labels_of, numbered_names, transformed_labels
from timm_accel.data.labels import are_lists, check_labels, label_number
from timm_accel.data.readers.filename_reader import number_classes
from timm_accel.data.readers.regular_files import open_regular

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "targets")
_LISTS = ("targets", "labels", "_labels")  # where torchvision's datasets list the label of each image


class DatasetReader(Reader):
    """Wrap a torch dataset as a timm reader.

    A sample is (image, label) or a dict with ``image`` or ``img``, and ``label``, ``labels``, ``fine_label`` or
    ``target``. An image is a PIL image, an array ``(H, W)`` or ``(H, W, C)``, a tensor ``(C, H, W)``, encoded bytes or
    a path. Arrays and tensors are ``uint8``, or float from 0 to 1. A label may be one-hot.

    Labels are those that the samples have, after the ``target_transform``. They are taken from the dataset's list
    where its first, middle and last sample agree with it; otherwise every sample is read once. Classes are named by
    `class_names`, or by the labels themselves.

    Args:
        dataset: Any map-style dataset, also a ``Subset`` or ``ConcatDataset``. If it has a transform, that must not
            normalize.

    Attributes:
        origins: A number for each image, ``(N,)``; it is the same where a ``Subset`` or ``ConcatDataset`` has an image
            twice.

    Raises:
        TypeError: An image is of no known kind, or a dict has no image.
        ValueError: A label is no class, two sources of class names disagree, or an array has other values or shapes.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset
        labels, places = _labels(dataset), _places(dataset)
        names = class_names(dataset) or _names_in(labels, self._filename)
        self.labels = check_labels(labels, names, self._filename, dense=True)
        self.class_to_idx = {name: number for number, name in enumerate(names)}
        self.origins = np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = split_sample(self.dataset[index])
        listed = self.labels[index]
        if _comparable(label, self.class_to_idx) != _single(listed):
            raise ValueError(
                f"Expected the label of {self._filename(index)!r} to be the same in the dataset's list and in its "
                f"sample, but got {listed} and {label!r}. Correct one."
            )
        return as_image(image), listed if isinstance(listed, list) else int(listed)

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{type(self.dataset).__name__}[{index}]"


def split_sample(sample: Any) -> tuple[Any, Any]:
    """Return the image and the label of a sample; the label is None where there is none.

    Raises:
        TypeError: A dict has no image.
    """
    if isinstance(sample, Mapping):
        image = next((sample[name] for name in IMAGE_COLUMNS if name in sample), None)
        if image is None:
            raise TypeError(
                f"Expected a sample that is a dict to have an image as one of {list(IMAGE_COLUMNS)}, but got "
                f"{list(sample)}. Rename it."
            )
        return image, next((sample[name] for name in LABEL_COLUMNS if name in sample), None)
    if isinstance(sample, tuple | list):
        return (sample[0], sample[1]) if len(sample) > 1 else (sample[0], None)
    return sample, None


def as_image(image: Any) -> Any:
    """Return a PIL image, bytes or an open file.

    Args:
        image: An image in any form that `DatasetReader` takes, or Hugging Face's dict of bytes and path.

    Raises:
        TypeError: It is of another kind.
        ValueError: An array or tensor has other values or another shape.
    """
    if isinstance(image, Image.Image | bytes):
        return image
    if isinstance(image, str | Path):
        return open_regular(image)
    if isinstance(image, Mapping) and {"bytes", "path"} & image.keys():
        return io.BytesIO(image["bytes"]) if image.get("bytes") else open_regular(image["path"])
    if isinstance(image, np.ndarray | torch.Tensor):
        return _from_array(image)
    raise TypeError(
        "Expected the images of a dataset to be PIL images, arrays, tensors, bytes or paths, but got "
        f"{type(image).__name__}. Convert them."
    )


def _from_array(pixels: np.ndarray | torch.Tensor) -> Image.Image:
    is_array = isinstance(pixels, np.ndarray)
    # a copy, since torch warns about arrays that cannot be written to, such as those of PIL images
    values = torch.as_tensor(np.array(pixels, order="C") if isinstance(pixels, np.ndarray) else pixels).detach().cpu()
    values = values[..., None] if is_array and values.ndim == 2 else values[None] if values.ndim == 2 else values
    if not (values.ndim == 3 and values.numel() and values.shape[2 if is_array else 0] in (1, 3, 4)):
        raise ValueError(
            "Expected the images of a dataset to be arrays (H, W, C) or tensors (C, H, W) of 1, 3 or 4 channels, but "
            f"got {'an array' if is_array else 'a tensor'} {tuple(pixels.shape)}. Transpose them."
        )
    if values.is_floating_point() and values.min() >= 0 and values.max() <= 1:
        values = (values * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        low, high = values.double().aminmax()  # torch has no minimum of uint16
        raise ValueError(
            f"Expected the images of a dataset to be uint8, or float from 0 to 1, but got {pixels.dtype} from "
            f"{low.item():g} to {high.item():g}. Leave out the normalization, or scale them."
        )
    return to_pil_image(values.movedim(2, 0) if is_array else values)


def _labels(dataset: Any) -> Sequence[Any]:
    """Return the label of each image as its sample has it, without reading every image where that can be avoided."""
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return [labels[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [label for part in dataset.datasets for label in _labels(part)]
    listed = _listed(dataset)
    looked_at = {0, len(dataset) // 2, len(dataset) - 1} if len(dataset) else set()
    if listed is not None and all(_agrees(dataset, index, listed[index]) for index in sorted(looked_at)):
        return listed
    return [_label(dataset[index], index in looked_at) for index in range(len(dataset))]


def _listed(dataset: Any) -> Any:
    """Return the labels that a dataset lists, after its ``target_transform``."""
    if isinstance(getattr(dataset, "reader", None), Reader):
        found, num_classes = transformed_labels(labels_of(dataset.reader), dataset), len(class_names(dataset) or ())
        return [np.isin(range(num_classes), each) for each in found] if are_lists(found) else found
    lists: Iterator[Any] = (getattr(dataset, name, None) for name in _LISTS)
    labels: Any = next((each for each in lists if hasattr(each, "__len__") and len(each) == len(dataset)), None)
    if labels is None or isinstance(labels, str | Mapping):
        return None
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    transform = getattr(dataset, "target_transform", None)
    try:
        return values if transform is None else [transform(value) for value in values]
    except (LookupError, TypeError, ValueError):  # the list has other values than the transform takes
        return None


def _agrees(dataset: Any, index: int, listed: Any) -> bool:
    """Return whether a sample has the label that the dataset lists, and check its image."""
    try:
        sample = dataset[index]
    except OSError:  # an unreadable image, which is reported when it is used
        return True
    return _comparable(_label(sample, check_image=True)) == _comparable(listed)


def _label(sample: Any, check_image: bool) -> Any:
    image, label = split_sample(sample)
    if check_image and not isinstance(image, str | Path | Mapping):  # no file is opened here
        as_image(image)
    return label


def _comparable(label: Any, numbers: Mapping[str, int] = MappingProxyType({})) -> Any:
    """Return an integer, a list of several, or text where the numbers of the classes are unknown."""
    return label if isinstance(label, str) and not numbers else _single(label_number(label, True, numbers))


def _single(label: Any) -> Any:
    return label[0] if isinstance(label, list) and len(label) == 1 else label


def _places(dataset: Any) -> np.ndarray:
    """Return the dataset that holds each image, and its index there, ``(N, 2)``."""
    if isinstance(dataset, Subset):
        return _places(dataset.dataset)[np.asarray(dataset.indices, dtype=int)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([_places(part) for part in dataset.datasets])
    return np.stack([np.full(len(dataset), id(dataset)), np.arange(len(dataset))], axis=1)


def _names_in(labels: Sequence[Any], place: Callable[[int], str]) -> list[str]:
    """Return names for the classes of a dataset that has none: the labels that are text, or '0', '1', …."""
    if words := {label for label in labels if isinstance(label, str)}:
        return list(number_classes(words))
    found = check_labels(labels, None, place, dense=True)
    largest = max((max(each, default=-1) if isinstance(each, list) else each for each in found), default=-1)
    return numbered_names(largest)

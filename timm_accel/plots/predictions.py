"""A figure of predictions: each image as the model sees it, with its most probable classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from timm_accel.plots.figures import _complete, _draw_cells
from timm_accel.plots.images import _check_count
from timm_accel.plots.text import _drawable, _shorten
from timm_accel.predict import Classifier
from timm_accel.predict.evaluating import as_classifier
from timm_accel.predict.images import ImageInputs, find_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

BATCH_SIZE = 16
UNREADABLE = "cannot be read"


def plot_predictions(
    path_or_model: str | Path | Classifier | nn.Module,
    images: Any,
    count: int = 16,
    *,
    columns: int | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show images as the model sees them, upright and cropped, with the two most probable classes and the file.

    An image that cannot be read is an empty cell, and the others are shown.

    Args:
        path_or_model: A path for `load_classifier`, a `Classifier`, or a model in memory with timm's data config.
        images: What `Classifier.predict` takes.
        count: The number of images, at most; those after the first so many are left out.
        columns: The number of columns; None for rows of equal length with up to 8 images.
        figure: The figure to draw into; None for a new figure.

    Raises:
        FileNotFoundError: The classifier or the images do not exist.
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: An argument is of an unknown kind.
        ValueError: `count` is below 1, no image can be read, or an output of the model is NaN or infinite.
    """
    _check_count(count)
    classifier = as_classifier(path_or_model)
    seen, files = _seen_images(classifier, images, count)
    names, found = _drawable(classifier.class_names), iter(_probabilities(classifier, _batch_of(seen)))
    titles = [UNREADABLE if each is None else "\n".join(_top_two(names, next(found))) for each in seen]
    return _complete(_draw_cells(_cells_of(seen), _with_files(titles, files), columns, figure))


def _seen_images(classifier: Classifier, images: Any, count: int) -> tuple[list[Tensor | None], list[str | None]]:
    """Return the first images as the model sees them, ``uint8``, or None where unreadable, and their files."""
    inputs = ImageInputs(find_images(images)[:count], classifier.transform, classifier.prepare)
    samples = [inputs[index] for index in range(len(inputs))]
    if all(image is None for image, _ in samples):
        why = f"none ({inputs.paths[0] or 'image 0'}: {samples[0][1]})" if samples else "none"
        raise ValueError(f"Expected images to hold one that can be read, but got {why}. Pass others.")
    return [image for image, _ in samples], inputs.paths


def _batch_of(seen: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([each for each in seen if each is not None])


def _probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    return torch.cat([classifier.probabilities(part) for part in images.split(BATCH_SIZE)])


def _cells_of(seen: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the images from 0 to 1; those that cannot be read are white."""
    some = next(each for each in seen if each is not None)
    return [torch.ones(some.shape) if each is None else each / 255 for each in seen]


def _with_files(titles: Sequence[str], files: Sequence[str | None]) -> list[str]:
    """Return titles with the file in the last line, and its folder if two names are equal."""
    paths = [Path(file) for file in files if file is not None]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(Path(path.parent.name, path.name)) for path in paths]
    shown = iter(_drawable(names))
    return [title if file is None else f"{title}\n{next(shown)}" for title, file in zip(titles, files, strict=True)]


def _top_two(names: Sequence[str], probabilities: Tensor) -> list[str]:
    """Return the most probable classes; the second one only if its probability is not 0.00."""
    top = probabilities.topk(min(2, len(names)))
    pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return [_with_share(names[label], value) for rank, (label, value) in enumerate(pairs) if not rank or value >= 0.005]


def _with_share(name: str, value: float) -> str:
    return _shorten(name, f"{':' if name[-1:].isdigit() else ''} {value:.2f}")

"""A figure of attribution: the places of each image that raise the logit of its class."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from timm_accel.messages import nearest
from timm_accel.plots.figures import _complete, _draw_cells
from timm_accel.plots.grad_cam import evaluation_mode, grad_cam, model_of
from timm_accel.plots.images import _check_count
from timm_accel.plots.predictions import (
    UNREADABLE,
    _batch_of,
    _cells_of,
    _probabilities,
    _seen_images,
    _with_files,
    _with_share,
)
from timm_accel.plots.text import _drawable
from timm_accel.predict import Classifier
from timm_accel.predict.evaluating import as_classifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

COLORS, OPACITY = "inferno", 0.75


def plot_attribution(
    path_or_model: str | Path | Classifier | nn.Module,
    images: Any,
    class_name: str | None = None,
    count: int = 16,
    *,
    columns: int | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show by Grad-CAM which places of images raise the logit of a class, on the images as the model sees them.

    The brightest place is the highest value of its image, so maps of two images cannot be compared in strength. The
    title is the class, its probability and the file. An image that cannot be read is an empty cell. The model, its mode
    and its gradients do not change, nor does the global random state.

    Args:
        path_or_model: A path for `load_classifier`, a `Classifier`, or a model in memory with timm's data config. It is
            a CNN or a transformer with a map of at least 4 × 4 cells; an exported file has no gradients.
        images: What `Classifier.predict` takes.
        class_name: The class of all images; None for the prediction of each image.
        count: The number of images, at most; those after the first so many are left out.
        columns: The number of columns; None for rows of equal length with up to 8 images.
        figure: The figure to draw into; None for a new figure.

    Raises:
        FileNotFoundError: The classifier or the images do not exist.
        ModuleNotFoundError: The extra ``attribution`` is not installed.
        TypeError: An argument is of an unknown kind.
        ValueError: `count` is below 1, there is no such class, no image can be read, the classifier is an exported
            file, the model has no map, or an output or a gradient is NaN or infinite.

    Source: ``captum.attr.LayerGradCam``, arXiv 1610.02391.
    """
    _check_count(count)
    classifier = as_classifier(path_or_model)
    model = model_of(classifier)
    number = _number_of(class_name, classifier)
    seen, files = _seen_images(classifier, images, count)
    batch = _batch_of(seen)
    with evaluation_mode(model):
        probabilities = _probabilities(classifier, batch)
        classes = probabilities.argmax(dim=1) if number is None else torch.full((len(batch),), number)
        maps = iter(grad_cam(classifier, batch, classes))
    names = _drawable(classifier.class_names)
    shown = iter(zip(classes.tolist(), probabilities.tolist(), strict=True))
    titles = [UNREADABLE if each is None else _titled(names, *next(shown)) for each in seen]
    cells = _draw_cells(_cells_of(seen), _with_files(titles, files), columns, figure)
    for axes, image in zip(cells, seen, strict=True):
        if image is not None:
            heat = next(maps).numpy()
            axes.imshow(heat, cmap=COLORS, vmin=0, vmax=1, alpha=OPACITY * heat)
    return _complete(cells)


def _titled(names: Sequence[str], label: int, probabilities: Sequence[float]) -> str:
    return _with_share(names[label], probabilities[label])


def _number_of(class_name: str | None, classifier: Classifier) -> int | None:
    if class_name is None:
        return None
    if class_name not in classifier.class_names:
        raise ValueError(
            f"Expected class_name to be one of the classifier's {len(classifier.class_names)} classes, but got "
            f"{class_name!r}. {nearest(class_name, classifier.class_names)}"
        )
    return classifier.class_names.index(class_name)

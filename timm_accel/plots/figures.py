"""Figures of the data: a batch as the model sees it, the draws of one image's transform, and mixed images.

Each function returns a new matplotlib figure outside pyplot, so it needs no display and need not be closed:
``save_figure(plot_batch(images, labels), "batch.png")``. With ``figure`` it draws into the caller's figure or a part of
one (``figure.subfigures(…)``, ``layout="constrained"``), so figures can be shown next to each other. The extra
``plots`` installs matplotlib.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data import FastCollateMixup, Mixup
from torch.utils.data import Dataset

from timm_accel.data.classes import class_names as names_of
from timm_accel.data.readers.regular_files import open_regular
from timm_accel.data.seeding import SampleKey, seed_step, seeded
from timm_accel.data.transforms.create import create_policy
from timm_accel.data.transforms.prepare_image import PrepareImage, read_image
from timm_accel.messages import missing_extra
from timm_accel.plots.images import (
    _check_count,
    _check_has_transform,
    _check_mixup,
    _image_and_label,
    _normalization,
    _titles,
    _to_tensor,
    _to_unit_range,
    _untransformed,
)
from timm_accel.plots.text import _drawable, _font_families, _shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MAX_COLUMNS = 8
CELL_INCHES = 1.8
TITLE_INCHES = 0.16  # for each line


def plot_batch(
    images: torch.Tensor,
    targets: torch.Tensor,
    class_names: Sequence[str] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: int | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show a batch as the model sees it, its classes above the images.

    Args:
        images: Color or grayscale images, ``(B, 3, H, W)`` or ``(B, 1, H, W)``; ``uint8`` is from 0 to 255.
        targets: Labels ``(B,)``, or soft labels ``(B, num_classes)``, of which the two largest are shown.
        class_names: The names in the order of the labels; None shows the labels as numbers.
        mean: The mean of each channel in the normalization; None if images are from 0 to 1.
        std: The standard deviations that belong to `mean`.
        columns: The number of columns; None for rows of equal length with up to 8 images.
        figure: The figure to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: Images or targets are not tensors.
        ValueError: A shape, a length or a value does not fit the others.
    """
    images = _to_unit_range(images, mean, std)
    return _draw(images, _titles(targets, len(images), class_names), columns, figure)


def plot_augmentations(
    dataset: Any,
    index: int,
    count: int = 8,
    seed: int = 0,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: int | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show an image of a dataset, first without its transform, then with random draws of it.

    Draw n is that of epoch n of a run with this seed that does not shuffle. The global random state does not change.

    Args:
        dataset: A map-style dataset with the attribute ``transform``, as in timm and torchvision.
        index: The index of the image in the dataset.
        count: The number of draws.
        seed: The same seed gives the same figure.
        mean: The mean of each channel in the normalization; None for that of the transform's ``Normalize``, if any.
        std: The standard deviations that belong to `mean`.
        columns: The number of columns; None for rows of equal length with up to 8 images.
        figure: The figure to draw into; None for a new figure.

    Raises:
        IndexError: There is no image with this index.
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: The dataset cannot be indexed, has no transform, or does not return images.
        ValueError: `count` is below 1, or the images' values do not fit `mean` and `std`.
    """
    _check_has_transform(dataset)
    if not 0 <= index < len(dataset):
        raise IndexError(
            f"Expected index to be from 0 to {len(dataset) - 1}, the last image of the dataset, but got {index}. "
            "Choose one of these."
        )
    _check_count(count)
    if mean is None and std is None:
        mean, std = _normalization(dataset)
    finish = getattr(dataset, "device_transform", None) or (lambda image: image)
    samples = seeded(dataset, seed)
    with _random_state_restored():
        original, label = _image_and_label(_untransformed(samples.dataset)[index])
        draws = [finish(_image_and_label(samples[SampleKey(epoch, index, index)])[0]) for epoch in range(count)]
    images = [
        _to_unit_range(_to_tensor(original), None, None),
        *(_to_unit_range(_to_tensor(d), mean, std) for d in draws),
    ]
    names = names_of(dataset) or []
    named = isinstance(label, int) and 0 <= label < len(names)
    title = f"original: {_drawable(names)[label]}" if named else "original"
    titles = [_shorten(title), *(f"draw {number}" for number in range(count))]
    return _draw([image[0] for image in images], titles, columns, figure)


def plot_transform(
    image: Any,
    transform: Callable[[Any], Any] | str,
    count: int = 7,
    seed: int = 0,
    *,
    columns: int | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show an image, and random draws of one transform of it.

    Args:
        image: A file or a PIL image; it is turned upright and converted to RGB.
        transform: A transform of timm or torchvision that takes a PIL image, such as ``ColorJitter(0.4)``, or timm's
            name of a policy, such as ``rand-m9-mstd0.5-inc1``.
        count: The number of draws.
        seed: The same seed gives the same figure.
        columns: The number of columns; None for rows of equal length with up to 8 images.
        figure: The figure to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        OSError: The image cannot be read.
        TypeError: `transform` is neither, or does not return an image.
        ValueError: `count` is below 1, or the policy is unknown.
    """
    if isinstance(image, str | PathLike):
        with open_regular(image) as file:
            image = read_image(file, PrepareImage())
    else:
        image = read_image(image, PrepareImage())
    if isinstance(transform, str):
        transform = create_policy(transform, (image.height, image.width))
    if not callable(transform):
        raise TypeError(
            f"Expected transform to be a function of an image or the name of timm's policy, but got {transform!r}. "
            "Pass one such as 'rand-m9-mstd0.5-inc1'."
        )
    return plot_augmentations(_OneImage(image, transform), 0, count, seed, columns=columns, figure=figure)


class _OneImage(Dataset):
    """A dataset of one image."""

    def __init__(self, image: Image.Image, transform: Callable[[Any], Any]) -> None:
        self.image, self.transform = image, transform

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.image.copy())


def plot_mixup(
    images: torch.Tensor,
    targets: torch.Tensor,
    mixup: Mixup,
    class_names: Sequence[str] | None = None,
    *,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: int | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show a batch after Mixup, with the two largest soft labels above each image.

    The batch and the global random state do not change.

    Args:
        images: An even number of images, ``(B, 3, H, W)`` or ``(B, 1, H, W)``; ``uint8`` is from 0 to 255.
        targets: Labels ``(B,)``.
        mixup: timm's ``Mixup``, or its ``FastCollateMixup``, whose mode ``half`` shows half as many images.
        class_names: The names in the order of the labels; None shows the labels as numbers.
        seed: The seed of a run; the figure is mixed as the first batch of that run.
        mean: The mean of each channel in the normalization; None if images are from 0 to 1.
        std: The standard deviations that belong to `mean`.
        columns: The number of columns; None for rows of equal length with up to 8 images.
        figure: The figure to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: `mixup` is not timm's, or images or targets are not tensors.
        ValueError: A shape, a length or a value does not fit the others, the batch size is odd, or this kind of `mixup`
            lacks the mode.

    Source: ``timm.data.Mixup``, ``timm.data.FastCollateMixup``.
    """
    images = _to_unit_range(images, mean, std)
    _check_mixup(mixup, targets, len(images))
    with _random_state_restored():
        seed_step(seed, epoch=0, batch_index=0, rank=0, device=torch.device("cpu"))
        if isinstance(mixup, FastCollateMixup):
            mixed, soft = mixup(list(zip(images.mul(255).round().byte(), targets.cpu(), strict=True)))
        else:
            mixed, soft = mixup(images, targets.cpu())
    return _draw(_to_unit_range(mixed, None, None), _titles(soft, len(mixed), class_names), columns, figure)


@contextmanager
def _random_state_restored() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _draw(
    images: Sequence[torch.Tensor] | torch.Tensor,
    titles: list[str],
    columns: int | None,
    figure: "Figure | SubFigure | None",
) -> "Figure":
    return _complete(_draw_cells(images, titles, columns, figure))


def _draw_cells(
    images: Sequence[torch.Tensor] | torch.Tensor,
    titles: list[str],
    columns: int | None,
    figure: "Figure | SubFigure | None",
) -> "list[Axes]":
    """Return the axes of the images."""
    if columns is None:
        columns = ceil(len(titles) / ceil(len(titles) / MAX_COLUMNS))
    if columns < 1:
        raise ValueError(f"Expected columns to be at least 1, but got {columns}. None chooses them.")
    rows = ceil(len(titles) / columns)
    if figure is None:
        height, width = images[-1].shape[-2:]
        lines = 1 + max(title.count("\n") for title in titles)
        row = CELL_INCHES * height / width + TITLE_INCHES * (lines + 0.75)
        figure = _new_figure(columns * CELL_INCHES, rows * row)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    font = _font_families(titles)
    for axes, image, title in zip(cells, images, titles, strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9, parse_math=False, fontfamily=font)
    return list(cells[: len(titles)])


def _complete(cells: "list[Axes]") -> "Figure":
    return cast("Figure", cells[0].figure.figure)  # also for a subfigure


def _new_figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("plots", "figures", error.name) from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")

"""Figures of the data: a batch as the model sees it, the draws of one image's transform, mixed images.

Each function returns a matplotlib figure of its own, outside pyplot, so that it needs no display and nothing has to be
closed: ``plot_batch(images, labels).savefig("batch.png")``. With ``figure`` it draws into the caller's figure or part
of one (``figure.subfigures(…)``, ``layout="constrained"``), and several stand side by side. The extra ``plots``
installs matplotlib.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from math import ceil
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data import FastCollateMixup, Mixup
from torch.utils.data import IterableDataset
from torchvision.transforms import Normalize, v2
from torchvision.transforms.functional import pil_to_tensor

from timm_accel.data.classes import class_names as names_of
from timm_accel.training.randomness import SampleKey, seed_step, seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

MAX_COLUMNS = 8
CELL_INCHES = 1.8
TITLE_INCHES = 0.16  # a line
TITLE_LETTERS = 24  # that fit above an image


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
        images: Colour or grey, ``(B, 3, H, W)`` or ``(B, 1, H, W)``; whole numbers (uint8) are taken as 0 to 255.
        targets: Labels ``(B,)``, or soft ones ``(B, num_classes)``, of which the two largest are named.
        class_names: The names in the order of the labels; None shows the labels' numbers.
        mean: Of each channel, by which the images were normalised; None when they are from 0 to 1.
        std: The standard deviations that go with `mean`.
        columns: Of images; None for rows of equal length, of 8 at most.
        figure: What to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: Images or targets are no tensors.
        ValueError: A shape, a length or a value does not fit the others.
    """
    pictures = _to_pictures(images, mean, std)
    return _draw(pictures, _titles(targets, len(pictures), class_names), columns, figure)


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
    """Show an image of a data set untransformed, then as its transform draws it.

    Draw n is that of epoch n in a run with this seed, did the run not shuffle. The global random state stays as it was.

    Args:
        dataset: A map-style data set with the attribute ``transform``, as timm's and torchvision's have.
        index: The number of the image in the data set.
        count: The number of draws.
        seed: The same seed gives the same figure.
        mean: Of each channel, by which the transform normalises; None for that of its ``Normalize``, if it has one.
        std: The standard deviations that go with `mean`.
        columns: Of images; None for rows of equal length, of 8 at most.
        figure: What to draw into; None for a new figure.

    Raises:
        IndexError: There is no image of this number.
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: The data set cannot be indexed, has no transform, or yields no images.
        ValueError: `count` is below 1, or the images' values do not fit `mean` and `std`.
    """
    transform = _transform_of(dataset)
    if not 0 <= index < len(dataset):
        raise IndexError(
            f"Expected index to be from 0 to {len(dataset) - 1}, the last image of the data set, but got {index}. "
            "Choose one of these."
        )
    if count < 1:
        raise ValueError(f"Expected count to be at least 1, but got {count}. Ask for one draw or more.")
    if mean is None and std is None:
        mean, std = _normalisation(transform)
    samples = seeded(dataset, seed)
    with _random_state_put_back():
        original, label = _image_and_label(_untransformed(samples.dataset)[index])
        draws = [_image_and_label(samples[SampleKey(epoch, index, index)])[0] for epoch in range(count)]
    pictures = [
        _to_pictures(_to_tensor(original), None, None),
        *(_to_pictures(_to_tensor(d), mean, std) for d in draws),
    ]
    names = names_of(dataset) or []
    named = isinstance(label, int) and 0 <= label < len(names)
    title = f"original: {names[label]}" if named else "original"
    titles = [_shorten(title), *(f"draw {number}" for number in range(count))]
    return _draw([picture[0] for picture in pictures], titles, columns, figure)


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
    """Show a batch as it is once mixed, the two largest of each image's soft labels above it.

    The batch stays as it is, and so does the global random state.

    Args:
        images: An even number, ``(B, 3, H, W)`` or ``(B, 1, H, W)``; whole numbers (uint8) are taken as 0 to 255.
        targets: Labels ``(B,)``.
        mixup: timm's ``Mixup``, or its ``FastCollateMixup``, of which mode ``half`` shows half as many images.
        class_names: The names in the order of the labels; None shows the labels' numbers.
        seed: The same seed gives the same figure, and mixes as the first batch of a run with this seed.
        mean: Of each channel, by which the images were normalised; None when they are from 0 to 1.
        std: The standard deviations that go with `mean`.
        columns: Of images; None for rows of equal length, of 8 at most.
        figure: What to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: `mixup` is none of timm's, or images or targets are no tensors.
        ValueError: A shape, a length or a value does not fit the others; the batch is odd; the mode is not one of
            this kind of `mixup`.

    Source: ``timm.data.Mixup``, ``timm.data.FastCollateMixup``.
    """
    pictures = _to_pictures(images, mean, std)
    _check_mixup(mixup, targets, len(pictures))
    with _random_state_put_back():
        seed_step(seed, epoch=0, batch_index=0, rank=0, device=torch.device("cpu"))
        if isinstance(mixup, FastCollateMixup):
            mixed, soft = mixup(list(zip(pictures.mul(255).round().byte(), targets.cpu(), strict=True)))
        else:
            mixed, soft = mixup(pictures, targets.cpu())
    return _draw(_to_pictures(mixed, None, None), _titles(soft, len(mixed), class_names), columns, figure)


def _to_pictures(images: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    """Return a copy of a batch on the host, its values from 0 to 1."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            f"Expected images to be a tensor (B, C, H, W), but got {type(images).__name__}. "
            "Stack them with torch.stack."
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            "Expected images to be a batch (B, C, H, W) with 1 or 3 channels, but got the shape "
            f"{tuple(images.shape)}. Add a dimension to a single image: image[None]."
        )
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return images / 255
    images = images.float()
    if mean is not None or std is not None:
        images = images * _per_channel("std", std, images) + _per_channel("mean", mean, images)
    low, high = images.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ValueError("Expected images to be finite, but got NaN or infinity. Look at what made them.")
    if mean is None and (low < -1 / 255 or high > 1 + 1 / 255):
        raise ValueError(
            f"Expected images to be from 0 to 1 without mean and std, but got {low:.3g} to {high:.3g}. "
            "Pass the mean and the std by which they were normalised."
        )
    return images.clamp(0, 1)  # erased regions hold noise beyond


def _per_channel(name: str, values: Sequence[float] | None, images: torch.Tensor) -> torch.Tensor:
    channels = images.shape[1]
    if values is None or torch.as_tensor(values).shape != (channels,):
        raise ValueError(
            f"Expected {name} to be one number for each channel, {channels} in all, but got {values!r}. "
            "Pass mean and std as the data set normalises."
        )
    return torch.as_tensor(values).float().view(-1, 1, 1)


def _titles(targets: torch.Tensor, count: int, class_names: Sequence[str] | None) -> list[str]:
    _check_targets(targets, count)
    num_classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    if class_names is not None and (
        len(class_names) < num_classes or (targets.ndim == 2 and len(class_names) > num_classes)
    ):
        raise ValueError(
            f"Expected class_names to name each of {num_classes} classes, but got {len(class_names)} names. "
            "Pass those of the data set: timm_accel.data.class_names(dataset)."
        )
    names = [str(label) for label in range(num_classes)] if class_names is None else class_names
    if targets.ndim == 1:
        return [_shorten(names[label]) for label in targets.tolist()]
    largest = targets.topk(min(2, num_classes))
    return [_soft_title(names, *pair) for pair in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)]


def _soft_title(names: Sequence[str], labels: list[int], values: list[float]) -> str:
    shares = [(names[label], f" {round(value, 2):g}") for label, value in zip(labels, values, strict=True)]
    parts = [_shorten(name, (":" if name[-1:].isdigit() else "") + share) for name, share in shares if share != " 0"]
    line = ", ".join(parts)
    return line if len(line) <= TITLE_LETTERS else ",\n".join(parts)


def _shorten(name: str, end: str = "") -> str:
    room = TITLE_LETTERS - len(end)
    return (name if len(name) <= room else name[: room - 1] + "…") + end


def _check_targets(targets: torch.Tensor, count: int) -> None:
    if not isinstance(targets, torch.Tensor):
        raise TypeError(
            f"Expected targets to be a tensor, but got {type(targets).__name__}. Pass torch.tensor(targets)."
        )
    hard = targets.ndim == 1 and not targets.is_floating_point()
    if not (hard or targets.ndim == 2) or len(targets) != count or 0 in targets.shape:
        raise ValueError(
            f"Expected targets to be whole numbers ({count},) or soft labels ({count}, num_classes), since there are "
            f"{count} images, but got {targets.dtype} of the shape {tuple(targets.shape)}. "
            "Pass those of the same batch."
        )
    if hard and targets.min() < 0:
        raise ValueError(f"Expected targets to be labels from 0, but got {int(targets.min())}. Leave such images out.")


def _check_mixup(mixup: Mixup, targets: torch.Tensor, count: int) -> None:
    if not isinstance(mixup, Mixup):
        raise TypeError(f"Expected mixup to be timm's Mixup, but got {type(mixup).__name__}. Pass timm.data.Mixup(…).")
    if mixup.mode == "half" and not isinstance(mixup, FastCollateMixup):
        raise ValueError(
            "Expected mixup to be a FastCollateMixup for mode 'half', since timm's Mixup takes it for 'batch', but got "
            "a Mixup. Pass timm.data.FastCollateMixup(mode='half', …)."
        )
    if count % 2:
        raise ValueError(
            f"Expected images to be an even number, since Mixup pairs them up, but got {count}. Leave one out."
        )
    _check_targets(targets, count)
    if targets.ndim != 1 or targets.max() >= mixup.num_classes:
        got = f"the shape {tuple(targets.shape)}" if targets.ndim != 1 else f"the label {int(targets.max())}"
        raise ValueError(
            f"Expected targets to be labels below {mixup.num_classes}, the mixup's num_classes, but got {got}. "
            "Pass hard labels and the right num_classes."
        )


def _transform_of(dataset: Any) -> Any:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"Expected dataset to be map-style, since one image is drawn often, but got {type(dataset).__name__}. "
            "Use plot_batch for a batch of it."
        )
    transform = getattr(dataset, "transform", None)
    if transform is None:
        raise TypeError(
            "Expected dataset to have a transform, since its draws are shown, but got "
            f"{type(dataset).__name__} without one. Pass the data set that holds it: of a Subset its .dataset."
        )
    return transform


def _normalisation(transform: Any) -> tuple[Any, Any]:
    for step in getattr(transform, "transforms", ()):
        if isinstance(step, Normalize | v2.Normalize):
            return step.mean, step.std
    return None, None


def _untransformed(dataset: Any) -> Any:
    plain = copy(dataset)
    plain.transform = lambda image: image
    if hasattr(plain, "transforms"):  # torchvision keeps the pair of both transforms as well
        plain.transforms = None
    return plain


def _image_and_label(sample: Any) -> tuple[Any, Any]:
    image, label, *_ = (*sample, None) if isinstance(sample, tuple | list) else (sample, None)
    return image, label


def _to_tensor(image: Any) -> torch.Tensor:
    """Return an image as a batch of one."""
    if isinstance(image, Image.Image):
        image = pil_to_tensor(image if image.mode == "L" else image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        image = torch.tensor(image)
    if not isinstance(image, torch.Tensor):
        raise TypeError(
            f"Expected the data set to yield images, but got {type(image).__name__}. "
            "Let its transform return a tensor, an array (C, H, W) or a PIL image."
        )
    return image[None]


@contextmanager
def _random_state_put_back() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _draw(
    pictures: Sequence[torch.Tensor] | torch.Tensor,
    titles: list[str],
    columns: int | None,
    figure: "Figure | SubFigure | None",
) -> "Figure":
    if columns is None:
        columns = ceil(len(titles) / ceil(len(titles) / MAX_COLUMNS))
    if columns < 1:
        raise ValueError(f"Expected columns to be at least 1, but got {columns}. Pass None to have them chosen.")
    rows = ceil(len(titles) / columns)
    if figure is None:
        height, width = pictures[-1].shape[-2:]
        lines = 1 + max(title.count("\n") for title in titles)
        row = CELL_INCHES * height / width + TITLE_INCHES * (lines + 0.75)
        figure = _new_figure(columns * CELL_INCHES, rows * row)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, picture, title in zip(cells, pictures, titles, strict=False):
        axes.imshow(picture.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9, parse_math=False)
    return cast("Figure", figure.figure)  # the whole, of a part too


def _new_figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Expected the extra 'plots' to be installed for figures, but {error.name!r} is missing. "
            'Run pip install "timm_accel[plots]".',
            name=error.name,
        ) from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")

"""Figures of features: each row shows a map, its mean and the channels that vary most."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch

from timm_accel.plots.figures import CELL_INCHES, TITLE_INCHES, _new_figure
from timm_accel.plots.images import _to_unit_range
from timm_accel.plots.text import _drawable, _font_families

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


def plot_feature_maps(
    maps: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    image: torch.Tensor | None = None,
    *,
    index: int = 0,
    channels: int = 6,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show a model's feature maps of an image: the mean over all channels, and the channels that vary most.

    Each cell has a separate scale: dark is its minimum, and bright is its maximum.

    Args:
        maps: Maps ``(B, C, H, W)`` by name, or in a list, as the extractors of ``timm_accel.features`` return them.
        image: The batch ``(B, 3, H, W)`` or ``(B, 1, H, W)`` of these maps, shown first in each row; None to show only
            maps.
        index: The index of the image in the batch.
        channels: The number of channels of each map.
        mean: The mean of each channel in the normalization; None if the image is from 0 to 1.
        std: The standard deviations that belong to `mean`.
        figure: The figure to draw into; None for a new figure.

    Raises:
        IndexError: The batch has no such image.
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: A map is not a tensor.
        ValueError: A map has another shape, there is no map, or `channels` is negative.
    """
    named = dict(maps) if isinstance(maps, Mapping) else {f"map {number}": each for number, each in enumerate(maps)}
    _check_maps(named, index, channels)
    image = None if image is None else _to_unit_range(image, mean, std)[index]
    titles = _drawable(list(named))
    rows = [
        _cells(title, each[index].detach().float().cpu(), channels)
        for title, each in zip(titles, named.values(), strict=True)
    ]
    if image is not None:
        rows = [[("image", image), *row] for row in rows]
    columns = max(map(len, rows))
    if figure is None:
        figure = _new_figure(columns * CELL_INCHES, len(rows) * (CELL_INCHES + 1.75 * TITLE_INCHES))
    font = _font_families(titles)
    for axes, cells in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for ax in axes:
            ax.set_axis_off()
        for ax, (title, values) in zip(axes, cells, strict=False):
            if values.ndim == 3:
                ax.imshow(values.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
            else:
                ax.imshow(values.numpy(), cmap="viridis")
            ax.set_title(title, fontsize=8, parse_math=False, fontfamily=font)
    return cast("Figure", figure.figure)


def _cells(name: str, features: torch.Tensor, channels: int) -> list[tuple[str, torch.Tensor]]:
    size = "×".join(map(str, features.shape))
    strongest = features.flatten(1).std(1, correction=0).topk(min(channels, len(features))).indices.tolist()
    return [
        (f"{name}\n{size}, mean", features.mean(0)),
        *((f"channel {channel}", features[channel]) for channel in strongest),
    ]


def _check_maps(maps: Mapping[str, torch.Tensor], index: int, channels: int) -> None:
    if not maps:
        raise ValueError("Expected maps to hold at least one, but got none. Ask the extractor for more levels.")
    for name, features in maps.items():
        if not isinstance(features, torch.Tensor):
            raise TypeError(
                f"Expected {name} to be a tensor (B, C, H, W), but got {type(features).__name__}. Pass maps."
            )
        if features.ndim != 4 or 0 in features.shape:
            raise ValueError(
                f"Expected {name} to be maps (B, C, H, W), but got the shape {tuple(features.shape)}. Tokens become "
                "maps by timm_accel.features.intermediate_features."
            )
        if not 0 <= index < len(features):
            raise IndexError(
                f"Expected index to be from 0 to {len(features) - 1}, the last image of the batch, but got {index}. "
                "Choose one of these."
            )
    if channels < 0:
        raise ValueError(f"Expected channels to be at least 0, but got {channels}. 0 shows only the means.")

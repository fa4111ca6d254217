"""The plotted data of figures: what a figure shows, as numbers, so that a test compares data and not pixels."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

NUM_POINTS = 24
"""How many points of a line are kept, spread over it."""


def plotted_data(figure: Any) -> list[dict]:
    """Return the data of each axes of a matplotlib ``Figure``: its title, lines, bars, points and images."""
    return [_axes_data(axes) for axes in figure.axes]


def _axes_data(axes: Any) -> dict:
    data = {
        "title": axes.get_title(),
        "lines": [[_rounded(_spread(values)) for values in line.get_data()] for line in axes.lines],
        "bars": _rounded([bar.get_height() for bar in axes.patches if hasattr(bar, "get_height")]),
        "points": [_rounded(_spread(points.get_offsets())) for points in axes.collections],
        "images": [_image_data(image.get_array()) for image in axes.images],
    }
    return {name: value for name, value in data.items() if value}


def _image_data(pixels: Any) -> list:
    """The shape of an image, and its means over a grid of 4 by 4."""
    array = np.ma.getdata(pixels).astype(float)
    rows = [np.array_split(row, 4, axis=1) for row in np.array_split(array, 4, axis=0)]
    return [list(array.shape), _rounded([float(np.mean(part)) if part.size else 0.0 for row in rows for part in row])]


def _spread(values: Any) -> list:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":  # names of classes, dates
        array = np.arange(len(array))
    kept = np.unique(np.linspace(0, max(len(array) - 1, 0), min(NUM_POINTS, len(array))).round().astype(int))
    return array[kept].astype(float).ravel().tolist() if len(array) else []


def _rounded(values: list) -> list:
    return [float(f"{value:.4g}") if math.isfinite(value) else str(value) for value in values]


def same_data(one: Any, other: Any) -> bool:
    """Compare two plotted data, numbers to 2 % of the larger one, since they are computed on another machine."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_data(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_data, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=0.02, abs_tol=1e-6)
    return bool(one == other)


@contextmanager
def noted_figures() -> Iterator[dict[str, list[dict]]]:
    """Note the data of each figure that is saved within the block, by the name of its file.

    The files hold no date and no random identifiers, so that the same figure has the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    data: dict[str, list[dict]] = {}
    save = Figure.savefig

    def note_and_save(figure: Figure, name: Any, *args: Any, **options: Any) -> None:
        data[Path(name).name] = plotted_data(figure)
        if Path(name).suffix == ".svg":
            options.setdefault("metadata", {"Date": None})
        save(figure, name, *args, **options)

    settings = {"svg.hashsalt": "timm_accel", "svg.fonttype": "path"}
    Figure.savefig = note_and_save  # type: ignore[method-assign]
    try:
        with matplotlib.rc_context(settings):
            yield data
    finally:
        Figure.savefig = save  # type: ignore[method-assign]

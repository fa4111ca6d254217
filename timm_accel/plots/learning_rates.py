"""Figures of learning rates: simulated schedules, and LR range tests."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from timm_accel.lr_finder import LRRangeTest
from timm_accel.plots.figures import _new_figure
from timm_accel.plots.text import _drawable, _font_families
from timm_accel.schedules import SimulatedSchedule
from timm_accel.text_files import escaped

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

MAX_LETTERS = 80  # of a name in the legend
WIDTH, HEIGHT = 6.0, 3.2  # inches


def plot_schedule(
    schedules: SimulatedSchedule | Mapping[str, SimulatedSchedule],
    *,
    title: str | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Draw the learning rates of a run over its epochs: a line for each distinct group of each schedule.

    Args:
        schedules: A simulated schedule, or several by name, to compare them.
        title: The title; None for none.
        figure: The figure to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: `schedules` holds something else.
        ValueError: `schedules` is empty.
    """
    named = dict(schedules) if isinstance(schedules, Mapping) else {"": schedules}
    if not named:
        raise ValueError(
            "Expected schedules to hold at least one, but got none. Make one by timm_accel.schedules.simulate_schedule."
        )
    for each in named.values():
        if not isinstance(each, SimulatedSchedule):
            raise TypeError(
                f"Expected a SimulatedSchedule, but got {type(each).__name__}. Make one by "
                "timm_accel.schedules.simulate_schedule."
            )
    named = dict(zip(_drawable([*map(str, named)], MAX_LETTERS), named.values(), strict=True))
    lines = [
        (", ".join(part for part in (name, group) if part), each.epochs, lrs)
        for name, each in named.items()
        for group, lrs in _distinct(each.learning_rates).items()
    ]
    if figure is None:
        figure = _new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    for number, (label, epochs, lrs) in enumerate(lines):
        dashes = (0, (4, 2 * number)) if number and len(named) > 1 else "solid"  # so equal lines are both visible
        axes.plot(epochs, lrs, label=label, linestyle=dashes, linewidth=1.2)
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        for text in axes.legend(prop={"size": 8, "family": _font_families(named)}).get_texts():
            text.set_parse_math(False)
    if title is not None:
        axes.set_title(escaped(title), fontsize=9, parse_math=False, fontfamily=_font_families([title]))
    return cast("Figure", figure.figure)


def _distinct(lrs: np.ndarray) -> dict[str, np.ndarray]:
    """Return the distinct learning rates by the name of the first group that has them."""
    columns, first, of = np.unique(lrs, axis=1, return_index=True, return_inverse=True)
    if len(first) == 1:
        return {"": columns[:, 0]}
    order = np.argsort(first)
    sizes = np.bincount(of.ravel())
    return {
        f"group {first[column]}" + (f" and {sizes[column] - 1} more" if sizes[column] > 1 else ""): columns[:, column]
        for column in order
    }


def plot_lr_finder(range_test: LRRangeTest, *, figure: "Figure | SubFigure | None" = None) -> "Figure":
    """Draw the losses of an LR range test over the learning rates, and the suggestions as vertical lines.

    The losses from the first to the minimum fill the figure. A divergence leaves it at the top.

    Args:
        range_test: The result of `find_lr`.
        figure: The figure to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: `range_test` is something else.
    """
    if not isinstance(range_test, LRRangeTest):
        raise TypeError(
            f"Expected an LRRangeTest, but got {type(range_test).__name__}. Make one by timm_accel.lr_finder.find_lr."
        )
    if figure is None:
        figure = _new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    axes.plot(range_test.learning_rates, range_test.losses, color="lightgray", linewidth=1, label="loss")
    axes.plot(range_test.learning_rates, range_test.smoothed, color="black", linewidth=1.5, label="smoothed")
    suggestions = {
        "steepest": range_test.steepest,
        "minimum / 10": range_test.minimum_tenth,
        "valley": range_test.valley,
    }
    for number, (name, lr) in enumerate(suggestions.items()):
        if lr is not None:
            axes.axvline(lr, color=f"C{number}", linestyle="--", linewidth=1, label=f"{name}: {lr:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=_useful_limits(range_test))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return cast("Figure", figure.figure)


def _useful_limits(range_test: LRRangeTest) -> tuple[float, float]:
    """Return limits of the losses up to the smallest smoothed one, without single jumps."""
    losses = range_test.losses[: range_test.smoothed.argmin() + 1]
    usual_low, usual_high = np.percentile(losses, (5, 95))
    low, high = min(range_test.smoothed.min(), usual_low), max(losses[0], usual_high)
    margin = max(0.25 * (high - low), 0.1 * abs(high)) or 1.0  # a flat curve looks flat
    return float(low - margin), float(high + margin)

"""Figures of learning rates: the plan of a schedule, and the sweep of the finder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from timm_accel.lr_finder import LRRangeTest
from timm_accel.plots.figures import _new_figure
from timm_accel.schedules import SimulatedSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

WIDTH, HEIGHT = 6.0, 3.2  # inches


def plot_schedule(
    plans: SimulatedSchedule | Mapping[str, SimulatedSchedule],
    *,
    title: str | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Draw the rates of a run over its epochs: a line for each distinct group, and for each plan.

    Args:
        plans: A plan, or several by name, to be compared.
        title: What to write above; None for nothing.
        figure: What to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: It is no plan.
        ValueError: There is none.
    """
    named = dict(plans) if isinstance(plans, Mapping) else {"": plans}
    if not named:
        raise ValueError(
            "Expected plans to hold at least one, but got none. Make one by timm_accel.schedules.simulate_schedule."
        )
    for each in named.values():
        if not isinstance(each, SimulatedSchedule):
            raise TypeError(
                f"Expected a SimulatedSchedule, but got {type(each).__name__}. Make one by "
                "timm_accel.schedules.simulate_schedule."
            )
    lines = [
        (", ".join(part for part in (name, group) if part), each.epochs, rates)
        for name, each in named.items()
        for group, rates in _distinct(each.rates).items()
    ]
    if figure is None:
        figure = _new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    for number, (label, epochs, rates) in enumerate(lines):
        dashes = (0, (4, 2 * number)) if number and len(named) > 1 else "solid"  # lines that agree both show
        axes.plot(epochs, rates, label=label, linestyle=dashes, linewidth=1.2)
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    if title is not None:
        axes.set_title(title, fontsize=9, parse_math=False)
    return cast("Figure", figure.figure)


def _distinct(rates: np.ndarray) -> dict[str, np.ndarray]:
    """Return the groups' rates by the name of the first group that has them."""
    columns, first, of = np.unique(rates, axis=1, return_index=True, return_inverse=True)
    if len(first) == 1:
        return {"": columns[:, 0]}
    order = np.argsort(first)
    sizes = np.bincount(of.ravel())
    return {
        f"group {first[column]}" + (f" and {sizes[column] - 1} more" if sizes[column] > 1 else ""): columns[:, column]
        for column in order
    }


def plot_lr_finder(sweep: LRRangeTest, *, figure: "Figure | SubFigure | None" = None) -> "Figure":
    """Draw the losses of a sweep over the rates, and the suggested rates as vertical lines.

    Args:
        sweep: What `find_lr` returned.
        figure: What to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: It is no sweep.
    """
    if not isinstance(sweep, LRRangeTest):
        raise TypeError(
            f"Expected a LRRangeTest, but got {type(sweep).__name__}. Make one by timm_accel.lr_finder.find_lr."
        )
    if figure is None:
        figure = _new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    axes.plot(sweep.rates, sweep.losses, color="lightgray", linewidth=1, label="loss")
    axes.plot(sweep.rates, sweep.smoothed, color="black", linewidth=1.5, label="smoothed")
    suggestions = {"steepest": sweep.steepest, "minimum / 10": sweep.minimum_tenth, "valley": sweep.valley}
    for number, (name, rate) in enumerate(suggestions.items()):
        if rate is not None:
            axes.axvline(rate, color=f"C{number}", linestyle="--", linewidth=1, label=f"{name}: {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return cast("Figure", figure.figure)

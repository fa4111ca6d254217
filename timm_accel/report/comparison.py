"""Collect what the page shows of several runs side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_accel.recipes.past_run import read_options
from timm_accel.report.charts import Chart, line_chart
from timm_accel.report.history import History, best_metrics, read_history


@dataclass(frozen=True)
class Comparison:
    """Several runs by name: curves, best weights, the metrics of the last epoch, and the options that differ."""

    names: list[str]
    charts: list[Chart]
    best: dict[str, dict[str, Any]]
    last: dict[str, dict[str, float]]
    metrics: list[str]
    differences: dict[str, list[Any]]
    epochs: dict[str, int]


def comparison_of(folders: list[Path]) -> Comparison:
    """Return the comparison of several runs.

    Args:
        folders: The folders of the runs.

    Raises:
        ValueError: The runs recorded no metric in common.
    """
    names = _names_of(folders)
    histories = {name: read_history(folder) for name, folder in zip(names, folders, strict=True)}
    metrics = [
        metric
        for metric in next(iter(histories.values())).metrics()
        if all(metric in history.points for history in histories.values())
    ]
    if not metrics:
        raise ValueError(
            f"Expected runs that recorded the same metrics, but got {', '.join(map(repr, names))}, which share none. "
            "Report them one by one."
        )
    best = {name: best_metrics(folder) for name, folder in zip(names, folders, strict=True)}
    last = {name: {metric: history.points[metric][-1][1] for metric in metrics} for name, history in histories.items()}
    recipes = {name: read_options(folder) for name, folder in zip(names, folders, strict=True)}
    return Comparison(
        names,
        [chart for metric in metrics if (chart := _chart(metric, histories))],
        best,
        last,
        metrics,
        _differences(recipes),
        {name: history.num_epochs for name, history in histories.items()},
    )


def _chart(metric: str, histories: Mapping[str, History]) -> Chart | None:
    """Return the curves of a metric, those of the EMA model dashed; a run has one color."""
    lines: dict[str, list[tuple[float, float]]] = {}
    colors: dict[str, int] = {}
    for number, (name, history) in enumerate(histories.items()):
        for each, points in history.pairs(metric).items():
            line = f"{name}{each.removeprefix(metric)}"
            lines[line], colors[line] = points, number
    return line_chart(metric, lines, dashed=[name for name in lines if name.endswith("(EMA)")], colors=colors)


def _names_of(folders: list[Path]) -> list[str]:
    """Return the names of the folders, or their paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _differences(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the options in which runs differ, with the value of each run."""
    options = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    values = {name: [recipe.get(name) for recipe in recipes.values()] for name in options if name != "run_dir"}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}

"""Collect what the page shows of several runs side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_accel.recipes.past_run import read_options
from timm_accel.report.charts import Chart, line_chart
from timm_accel.report.differences import check_tasks, notes_on
from timm_accel.report.history import History, best_metrics, read_history


@dataclass(frozen=True)
class Comparison:
    """Several runs by name: curves, best weights, the metrics of the last epoch, and the options that differ.

    `notes` says what does not compare.
    """

    names: list[str]
    charts: list[Chart]
    best: dict[str, dict[str, Any]]
    last: dict[str, dict[str, float]]
    metrics: list[str]
    differences: dict[str, list[Any]]
    epochs: dict[str, int]
    notes: list[str]


def comparison_of(folders: list[Path]) -> Comparison:
    """Return the comparison of several runs.

    Args:
        folders: The folders of the runs.

    Raises:
        ValueError: A run is named twice, the runs recorded no metric in common, or only some are multi-label.
    """
    names = _names_of(folders)
    by_name = dict(zip(names, folders, strict=True))
    check_tasks(by_name)
    histories = {name: read_history(folder) for name, folder in by_name.items()}
    metrics = _common_metrics(histories)
    recipes = {name: read_options(folder) for name, folder in by_name.items()}
    return Comparison(
        names,
        [chart for metric in metrics if (chart := _chart(metric, histories))],
        {name: best_metrics(folder) for name, folder in by_name.items()},
        {name: _last(history, metrics) for name, history in histories.items()},
        metrics,
        _differences(recipes),
        {name: history.num_epochs for name, history in histories.items()},
        notes_on(by_name, histories, recipes, metrics),
    )


def _last(history: History, metrics: list[str]) -> dict[str, float]:
    return {each: history.points[each][-1][1] for each in metrics if each in history.points}


def _common_metrics(histories: Mapping[str, History]) -> list[str]:
    """Return the metrics that all runs with a history recorded."""
    begun = [history for history in histories.values() if history.points]
    metrics = [each for each in (begun[0].metrics() if begun else ()) if all(each in one.points for one in begun)]
    if not metrics:
        raise ValueError(
            f"Expected runs that recorded the same metrics, but got {', '.join(map(repr, histories))}, which share "
            "none. Report them one by one."
        )
    return metrics


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
    paths = [folder.resolve() for folder in folders]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ValueError(f"Expected runs to be different, but got {str(twice)!r} twice. Name each run once.")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _differences(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the options in which runs differ, with the value of each run."""
    options = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    values = {name: [recipe.get(name) for recipe in recipes.values()] for name in options if name != "run_dir"}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}

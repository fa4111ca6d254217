"""Read the history of a run for its curves, and its best metrics."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_accel.messages import counted
from timm_accel.models import read_config
from timm_accel.models.opening import best_folders
from timm_accel.states.history import complete_rows, number_in
from timm_accel.states.run_dir import holder_of_run
from timm_accel.states.speed import COLUMNS
from timm_accel.states.weights import EMA_MODEL, metric_prefix

EMA = metric_prefix(EMA_MODEL)
_ACCURACIES = ("accuracy", "map", "f1_macro", "accuracy_top5", "exact_match", "train_accuracy")


@dataclass(frozen=True)
class History:
    """The metrics of each epoch, by name: points (epoch, value); epochs count from 1."""

    points: dict[str, list[tuple[float, float]]]
    num_epochs: int

    def pairs(self, name: str) -> dict[str, list[tuple[float, float]]]:
        """Return the points of a metric, and of the EMA model's."""
        found = {name: self.points.get(name, []), f"{name} (EMA)": self.points.get(EMA + name, [])}
        return {each: points for each, points in found.items() if points}

    def metrics(self) -> list[str]:
        """Return the names of all metrics of the model itself."""
        known = {"epoch", "lr", *COLUMNS}
        return [name for name in self.points if name not in known and not name.startswith(EMA)]

    def main_metric(self) -> str | None:
        """Return the name of the metric to compare runs by: accuracy, or mAP of a multi-label run."""
        return next((name for name in (*_ACCURACIES, "eval_loss_epoch") if name in self.points), None)

    def other_metrics(self) -> list[str]:
        """Return the names of all further metrics of evaluation."""
        known = {"train_loss_epoch", "eval_loss_epoch", self.main_metric()}
        return [name for name in self.metrics() if name not in known]


def read_history(run: Path) -> History:
    """Return the history of a run; it is empty if the run has none.

    Raises:
        ValueError: The file is no history.
    """
    path = run / "history.csv"
    if not path.is_file():
        return History({}, 0)
    points: dict[str, list[tuple[float, float]]] = {}
    rows = complete_rows(path)
    for row in rows:
        epoch = number_in(row.get("epoch", ""))
        if epoch is None:
            raise ValueError(
                f"Expected a history with the column epoch, but got {str(path)!r}. Restore it, or resume the run."
            )
        for name, cell in row.items():
            if (value := number_in(cell)) is not None:
                points.setdefault(name, []).append((epoch, value))
    return History(points, len(rows))


def progress_of(run: Path, history: History, options: Mapping[str, Any]) -> str | None:
    """Return how far a run is, as the end of a sentence about it; None if it has all epochs of its recipe.

    Args:
        run: The folder of the run.
        history: Its history.
        options: The options of its recipe.
    """
    wanted = options.get("num_epochs")
    if not isinstance(wanted, int) or history.num_epochs >= wanted:
        return None
    holder = holder_of_run(run)
    is_other = holder is not None and not holder.startswith(f"process {os.getpid()} ")  # its own run has just ended
    state = f"it is in progress ({holder})" if is_other else "it is in progress, or it stopped"
    return f"has {history.num_epochs} of {counted(wanted, 'epoch')} so far: {state}."


def best_metrics(run: Path) -> dict[str, dict[str, Any]]:
    """Return the best metric of each folder of best weights, as its ``config.json`` has it."""
    return {folder.name: read_config(folder).get("best") or {} for folder in best_folders(run)}

"""Read the history of a run for its curves."""

from dataclasses import dataclass
from pathlib import Path

from timm_accel.states.weights import EMA_MODEL, metric_prefix
from timm_accel.text_files import read_csv

EMA = metric_prefix(EMA_MODEL)
_TIMES = ("images_per_second", "data_wait", "peak_memory_gb")
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
        known = {"epoch", "lr", *_TIMES}
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
    rows = read_csv(path)
    for row in rows:
        epoch = _number(row.get("epoch", ""))
        if epoch is None:
            raise ValueError(
                f"Expected a history with the column epoch, but got {str(path)!r}. Restore it, or resume the run."
            )
        for name, cell in row.items():
            if (value := _number(cell)) is not None:
                points.setdefault(name, []).append((epoch, value))
    return History(points, len(rows))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None

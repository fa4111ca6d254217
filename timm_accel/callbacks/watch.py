"""Watching one metric of the history: what it is now, and whether it is better than before."""

from math import isfinite

from timm_accel.training import LoopTrainer
from timm_accel.training.surface import refuse_unless_recorded


def is_better(value: float, best: float | None, greater_is_better: bool, margin: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `margin`. A value that is not finite never does."""
    if not isfinite(value):
        return False
    if best is None:
        return True
    return value - best > margin if greater_is_better else best - value > margin


def latest(trainer: LoopTrainer, name: str) -> float:
    """Return the metric's latest value.

    Raises:
        ValueError: It has none.
    """
    refuse_unless_recorded("watch_metric", name, trainer.run_history.get_metric_names())
    return float(trainer.run_history.get_latest_metric(name))

"""The metrics that a run records: which values are new, and which value is better."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

from timm_accel.messages import nearest


def is_better(value: float, best: float | None, greater_is_better: bool, margin: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `margin`. A value that is not finite never does."""
    if not isfinite(value):
        return False
    if best is None:
        return True
    return value - best > margin if greater_is_better else best - value > margin


def refuse_unless_recorded(argument: str, name: str, recorded: Iterable[str]) -> None:
    """Raise a `ValueError` that suggests near names if the run does not record the metric."""
    if name not in recorded:
        raise ValueError(
            f"Expected {argument} to be a metric that the run records, but got {name!r}. {nearest(name, recorded)}"
        )


class FreshMetrics:
    """The values recorded since the last call of `take`; values recorded before the start are old."""

    def __init__(self, history: Any) -> None:
        self._seen: dict[str, int] = {}
        self.take(history)

    def state_dict(self) -> dict[str, int]:
        """Return how many values of each metric are old."""
        return dict(self._seen)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Count those values as old, and no others."""
        self._seen = dict(state_dict)

    def take(self, history: Any) -> dict[str, float]:
        """Return the latest value of each metric recorded since the last call."""
        fresh = {}
        for name in sorted(history.get_metric_names()):
            values = list(history.get_metric_values(name))
            if len(values) > self._seen.get(name, 0):
                self._seen[name], fresh[name] = len(values), values[-1]
        return fresh

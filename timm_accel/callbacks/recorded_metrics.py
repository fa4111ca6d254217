"""The metrics that a run records: which values are new, which value is better, and how they are shown."""

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
import torch

from timm_accel.messages import nearest


def is_better(value: float, best: float | None, greater_is_better: bool, margin: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `margin`. A value that is not finite never does, and none is kept."""
    if not isfinite(value):
        return False
    if best is None or not isfinite(best):
        return True
    return value - best > margin if greater_is_better else best - value > margin


def refuse_unless_recorded(argument: str, name: str, recorded: Iterable[str]) -> None:
    """Raise a `ValueError` that suggests near names if the run does not record the metric."""
    if name not in recorded:
        raise ValueError(
            f"Expected {argument} to be a metric that the run records, but got {name!r}. {nearest(name, recorded)}"
        )


def one_number(argument: str, name: str, value: Any) -> float:
    """Return a metric's value as a number.

    Raises:
        ValueError: It is not one number.
    """
    number = plain_value(value)
    while isinstance(number, list) and len(number) == 1:
        number = number[0]
    if not isinstance(number, Real):
        raise ValueError(
            f"Expected {argument} to be a metric of one number, but {name!r} is {readable(value)}. Watch another one."
        )
    return float(number)


def plain_value(value: Any) -> Any:
    """Return a recorded value with tensors and arrays as numbers or lists, within dicts and lists too."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.item() if value.ndim == 0 else value.tolist()
    if isinstance(value, np.generic | np.ndarray):
        return value.item() if value.ndim == 0 else plain_value(value.tolist())
    if isinstance(value, Mapping):
        return {plain_value(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(item) for item in value]
    return value


def readable(value: Any) -> str:
    """Return a recorded value in one line: numbers with four decimals, and at most eight elements of a list or dict."""
    value = plain_value(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return f"{float(value):.4f}"
    if isinstance(value, dict):
        return "{" + _some([f"{key}: {readable(item)}" for key, item in _first(value.items())], len(value)) + "}"
    if isinstance(value, list):
        return "[" + _some([readable(item) for item in _first(value)], len(value)) + "]"
    return " ".join(str(value).split())


def _first(items: Iterable[Any]) -> list[Any]:
    return [item for item, _ in zip(items, range(8), strict=False)]


def _some(shown: list[str], count: int) -> str:
    return ", ".join(shown if len(shown) == count else [*shown, f"… {count - len(shown)} more"])


class RepeatedMetrics:
    """Reports metrics that get more than one value in an evaluation, each once."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def begin(self, history: Any) -> None:
        """Count from now on."""
        self._history, self._before = history, _counts(history)

    def report(self, print_fn: Callable[[str], Any]) -> None:
        """Print one line about the metrics that got more than one value, unless they were reported before."""
        counts = _counts(self._history)
        names = {name for name, count in counts.items() if count - self._before.get(name, 0) > 1} - self._reported
        if names:
            self._reported |= names
            print_fn(
                f"Recorded more than once in one evaluation: {', '.join(sorted(names))}. The last value is shown; give "
                "your metric another name."
            )


def _counts(history: Any) -> dict[str, int]:
    return {name: len(list(history.get_metric_values(name))) for name in history.get_metric_names()}


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

    def take(self, history: Any) -> dict[str, Any]:
        """Return the latest value of each metric recorded since the last call."""
        fresh = {}
        for name in sorted(history.get_metric_names()):
            values = list(history.get_metric_values(name))
            if len(values) > self._seen.get(name, 0):
                self._seen[name], fresh[name] = len(values), values[-1]
        return fresh

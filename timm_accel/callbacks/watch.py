"""Whether a watched metric is better than before."""

from math import isfinite


def is_better(value: float, best: float | None, greater_is_better: bool, margin: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `margin`. A value that is not finite never does."""
    if not isfinite(value):
        return False
    if best is None:
        return True
    return value - best > margin if greater_is_better else best - value > margin

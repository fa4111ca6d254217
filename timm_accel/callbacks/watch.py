"""Watching one metric of the history: is it there, and is it better than before?"""

from math import isfinite

from timm_accel.suggestions import nearest
from timm_accel.training import LoopTrainer

_OURS = {"timm_accel", "pytorch_accelerated", "builtins"}


def is_better(value: float, best: float | None, greater_is_better: bool, margin: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `margin`. A value that is not finite never does."""
    if not isfinite(value):
        return False
    if best is None:
        return True
    return value - best > margin if greater_is_better else best - value > margin


def check_metric(trainer: LoopTrainer, name: str) -> None:
    """Raise before training when the run will not record the metric.

    A user's trainer or callback may record more than its mixins know of; then the question is left to the end of the
    first epoch.
    """
    kinds = [*type(trainer).__mro__, *(type(callback) for callback in trainer.callback_handler)]
    if all(kind.__module__.split(".")[0] in _OURS for kind in kinds):
        evaluated = [] if trainer.eval_dataset is None else trainer.evaluation_metrics()
        prefixed = [prefix + metric for prefix in trainer.metric_prefixes() for metric in evaluated]
        _refuse_unless_in(name, ["train_loss_epoch", *prefixed])


def latest(trainer: LoopTrainer, name: str) -> float:
    """Return the metric's latest value.

    Raises:
        ValueError: It has none.
    """
    _refuse_unless_in(name, list(trainer.run_history.get_metric_names()))
    return float(trainer.run_history.get_latest_metric(name))


def _refuse_unless_in(name: str, recorded: list[str]) -> None:
    if name not in recorded:
        raise ValueError(
            f"Expected watch_metric to be a metric that the run records, but got {name!r}. {nearest(name, recorded)}"
        )

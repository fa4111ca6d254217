"""The surface that mixins and callbacks stand on: what a trainer tells of its run, and the hooks that they override."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from torch import nn

from timm_accel.messages import nearest
from timm_accel.states.consensus import Agreement, Stop
from timm_accel.states.running_mean import RunningMean
from timm_accel.states.weights import metric_prefix
from timm_accel.training.preparation import PreparedTrainer

_OURS = {"timm_accel", "pytorch_accelerated", "builtins"}


def _refuse_unless_recorded(argument: str, name: str, recorded: Iterable[str]) -> None:
    """Raise a `ValueError` that suggests near names when the metric is not among those recorded."""
    if name not in recorded:
        raise ValueError(
            f"Expected {argument} to be a metric that the run records, but got {name!r}. {nearest(name, recorded)}"
        )


class SurfaceTrainer(PreparedTrainer):
    """The part of `LoopTrainer` that is read and overridden; see there."""

    _epoch: int | None = None
    _batch_index: int | None = None
    _num_updates: int = 0
    _agreement: Agreement | None = None

    @property
    def accelerator(self) -> Accelerator:
        """accelerate's `Accelerator` of the present run."""
        return self._accelerator

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self._accelerator.process_index

    @property
    def epoch(self) -> int | None:
        """The epoch of the run, from 0; None outside a run."""
        return self._epoch

    @property
    def batch_index(self) -> int | None:
        """The micro-batch of the training epoch, from 0; None outside one."""
        return self._batch_index

    @property
    def num_updates(self) -> int:
        """Optimizer updates that really happened since the run's start; skipped ones do not count."""
        return self._num_updates

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in one epoch: batches of this process over accumulation, rounded up. 0 before a run."""
        return 0 if self.run_config is None else self.run_config.num_update_steps_per_epoch

    @property
    def train_dataloader(self) -> Any:
        """The training loader, prepared by accelerate; None outside a run."""
        return self._train_dataloader

    @property
    def eval_dataloader(self) -> Any:
        """The evaluation loader, prepared by accelerate; None without evaluation data."""
        return self._eval_dataloader

    @property
    def running_loss(self) -> RunningMean:
        """The loss of the training epoch or evaluation under way, on this process."""
        return self._loss_tracker

    @property
    def learning_rate(self) -> float:
        """The rate of the optimizer's first parameter group; NaN where the optimizer finds its own."""
        rate = self.optimizer.param_groups[0]["lr"]
        return float("nan") if rate is None else float(rate)

    def weights(self) -> dict[str, nn.Module]:
        """Return every set of weights that may be evaluated and kept: the model, and what mixins add."""
        return {"model": self.unwrapped_model}

    def metric_prefixes(self) -> list[str]:
        """Return the prefixes of the metrics that an evaluation records, one for each set of weights."""
        return [metric_prefix("model")]

    def evaluation_metrics(self) -> list[str]:
        """Return the names of the metrics, without prefix, that an evaluation in training records."""
        return ["eval_loss_epoch"]

    def check_metric(self, argument: str, name: str) -> None:
        """Raise before training when the run will not record a metric.

        A user's trainer or callback may record more than the mixins know of; then the question is left to the end of
        the first epoch.

        Args:
            argument: What the user calls it, for the message.
            name: The metric's name in the history.

        Raises:
            ValueError: The run will not record it.
        """
        kinds = [*type(self).__mro__, *(type(callback) for callback in self.callback_handler)]
        if all(kind.__module__.split(".")[0] in _OURS for kind in kinds):
            evaluated = [] if self.eval_dataset is None else self.evaluation_metrics()
            names = [prefix + metric for prefix in self.metric_prefixes() for metric in evaluated]
            _refuse_unless_recorded(argument, name, ["train_loss_epoch", *names])

    def latest_metric(self, argument: str, name: str) -> float:
        """Return a metric's latest value.

        Args:
            argument: What the user calls it, for the message.
            name: The metric's name in the history.

        Raises:
            ValueError: It has none.
        """
        _refuse_unless_recorded(argument, name, self.run_history.get_metric_names())
        return float(self.run_history.get_latest_metric(name))

    def request_stop(self, reason: str, *, failed: bool = False, interrupted: bool = False) -> None:
        """Ask, on any process, to end the run at the next agreement.

        Outside a run there is nothing to stop, and nothing happens. Where states are kept, one is written, but not of a
        run that failed.

        Args:
            reason: One sentence, printed on the main process.
            failed: Whether `train` then raises a `RuntimeError` with that sentence on all processes.
            interrupted: Whether the run is to go on later: a state is written, and `train` leaves all processes with
                exit code 75 (`SystemExit`).
        """
        if self._agreement is not None:
            stop = Stop.FAILED if failed else Stop.INTERRUPTED if interrupted else Stop.FINISHED
            self._agreement.ask_to_stop(stop, reason)

    def backward_kwargs(self) -> dict[str, Any]:
        """Return keyword arguments for ``loss.backward``. Mixins add theirs."""
        return {}

    def backward_step(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss, **self.backward_kwargs())

    def clip_gradients(self) -> None:
        """Clip the gradients, once for each update; by value when ``gradient_clip_value`` was given to `train`."""
        if self.run_config.gradient_clip_value is not None:
            self._clip_gradients()

    def after_update(self) -> None:
        """Follow a real optimizer update; `num_updates` has already advanced."""

    def evaluation_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of an evaluation batch: ``loss_func`` unless a mixin has another."""
        return self.loss_func(outputs, targets)

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        with torch.no_grad():
            with self.accelerator.autocast():
                outputs = self.model(batch[0])
            outputs = convert_to_fp32(outputs)
            loss = self.evaluation_loss(outputs, batch[1])
        return {"loss": loss, "model_outputs": outputs, "batch_size": len(batch[1])}

    def update_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        """Look at an evaluation batch and the whole of its output, once every mixin has added to it."""

"""A run: the state and the evaluation of one call of `LoopTrainer.evaluate` or `LoopTrainer.train`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from timm_accel.callbacks.recorded_metrics import RepeatedMetrics
from timm_accel.data.loader_errors import loader_errors_explained
from timm_accel.data.seeding import seed_prefetch
from timm_accel.distributed.connections import lost_connection_explained
from timm_accel.distributed.consensus import Consensus, Requests, Stop
from timm_accel.losses import Divisors
from timm_accel.states.late_reads import LateReads
from timm_accel.states.running_mean import RunningMean, global_means
from timm_accel.states.speed import Speed
from timm_accel.states.weights import metric_prefix
from timm_accel.training.loaders import LoaderWorkers, device_transform_of
from timm_accel.training.prefetch import prefetch
from timm_accel.training.snapshot import Progress
from timm_accel.upstream import StopTrainingError

if TYPE_CHECKING:
    from timm_accel.training.trainer import LoopTrainer


class Run:
    """One evaluation: its progress, the requests that its processes agreed on, and the evaluation epoch.

    Its attributes do not depend on the trainer's attributes of the same names, which a subclass may set.

    Args:
        trainer: The trainer.
        num_updates: Optimizer updates so far, without skipped ones.
    """

    def __init__(self, trainer: LoopTrainer, num_updates: int = 0) -> None:
        self.trainer, self.num_updates = trainer, num_updates
        self.epoch: int | None = None  # from 0
        self.batch_index: int | None = None  # the micro-batch of the training epoch, from 0
        self.progress = Progress()
        self.loader_workers = LoaderWorkers()
        self.max_updates: int | None = None  # as given to `train`
        self.agreed, self.late_reads = Requests(), LateReads()
        self.training_means: dict[str, RunningMean] = {}  # metrics of the training epoch, beside its loss
        self.speed, self.evaluation_speed = Speed(), Speed()  # of the training epoch and the evaluation
        self.at_exit = ExitStack()  # closed when the run is left, also by an error
        self._consensus: Consensus | None = None
        self._unwrapped: tuple[Any, Any] = (None, None)
        self._repeated = RepeatedMetrics()

    @property
    def accelerator(self) -> Accelerator:
        """accelerate's `Accelerator`."""
        return self.trainer._accelerator

    @property
    def rank(self) -> int:
        """The rank of this process, from 0."""
        return self.trainer._accelerator.process_index

    @property
    def unwrapped_model(self) -> nn.Module:
        """The module whose weights are trained, without DDP's, FSDP's or ``torch.compile``'s wrapper."""
        if self._unwrapped[0] is not self.trainer.model:  # accelerate looks at the disk and at all modules to unwrap it
            self._unwrapped = self.trainer.model, self.trainer.get_unwrapped_model()
        return self._unwrapped[1]

    @property
    def unwrapped_optimizer(self) -> Optimizer:
        """The user's optimizer, without accelerate's wrapper."""
        optimizer = self.trainer.optimizer
        while isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        return optimizer

    @property
    def learning_rate(self) -> float:
        """The learning rate of the optimizer's first parameter group; NaN where the optimizer finds its own."""
        lr = self.trainer.optimizer.param_groups[0]["lr"]
        return float("nan") if lr is None else float(lr)

    @property
    def train_dataloader(self) -> Any:
        """The training loader, prepared by accelerate; None in an evaluation and before a run."""
        return self.trainer._train_dataloader

    @property
    def eval_dataloader(self) -> Any:
        """The evaluation loader, prepared by accelerate; None without evaluation data."""
        return self.trainer._eval_dataloader

    @property
    def running_loss(self) -> RunningMean:
        """The loss of the current training epoch or evaluation, on this process."""
        return self.trainer._loss_tracker

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in one epoch: batches of this process over accumulation, rounded up. 0 before a run."""
        config = self.trainer.run_config
        return 0 if config is None else config.num_update_steps_per_epoch

    @property
    def epochs_done(self) -> int:
        """Complete epochs, with their evaluation and all callbacks; those before a resume count too."""
        return self.progress.epoch

    @property
    def batches_done(self) -> int:
        """Micro-batches of the current epoch that this process has trained on; those before a resume count too."""
        return self.progress.batch

    @property
    def epoch_learning_rate(self) -> float:
        """The learning rate at the start of the current epoch."""
        return self.progress.learning_rate

    @property
    def skips_evaluation(self) -> bool:
        """Whether there are evaluation data, but the current epoch ends without an evaluation."""
        return False

    def belongs_to_run(self, path: Path) -> bool:
        """Whether an existing file or folder belongs to this run."""
        return False

    @property
    def has_other_evaluation(self) -> bool:
        """Whether the run resumed with other evaluation images, so that earlier values are not comparable."""
        return False

    def execute(self) -> None:
        """Evaluate, between upstream's hooks and events."""
        trainer = self.trainer
        with self._agreeing():
            trainer.evaluation_run_start()
            self.notify("on_evaluation_run_start")
            try:
                trainer._run_eval_epoch(trainer._eval_dataloader, is_training=False)
            except StopTrainingError as stop:
                self._stopped(stop)
            trainer.evaluation_run_end()
            self.notify("on_evaluation_run_end")

    def eval_epoch(self, loader: Iterable, is_training: bool, is_intermediate: bool) -> None:
        """Evaluate all weights on the unwrapped model, so that processes may have different numbers of batches."""
        trainer = self.trainer
        divisors = Divisors()
        self._repeated.begin(trainer.run_history)
        with self._evaluating(is_intermediate):
            trainer.start_evaluation_metrics()
            trainer.eval_epoch_start()
            losses = {name: RunningMean(trainer.device) for name in trainer.evaluated_models()}
            trainer._loss_tracker = losses["model"]
            speed = Speed(losses["model"], self.accelerator)
            self.evaluation_speed = self.evaluation_speed if is_intermediate else speed
            unlimited = trainer._eval_dataloader
            self.notify("on_eval_epoch_start", is_intermediate=is_intermediate)
            limited = trainer._eval_dataloader is not unlimited  # by a callback from upstream
            with torch.no_grad():
                for batch in self._prefetched(speed, trainer._eval_dataloader if limited else loader):
                    if batch is not None:  # None: none of its images could be read
                        self._eval_batch(batch, losses, divisors)
            trainer.record_evaluation_metrics()
            trainer.eval_epoch_end()
            name = "evaluation_loss" if not is_training else "eval_loss" if is_intermediate else "eval_loss_epoch"
            self._record({f"{metric_prefix(weights_name)}{name}": loss for weights_name, loss in losses.items()})
            seconds = speed.end()
            self.speed.leave_out(seconds if is_intermediate else 0)
            self.notify("on_eval_epoch_end", is_intermediate=is_intermediate)
            self._repeated.report(trainer.print)
        if not is_intermediate:
            if is_training:
                self.progress = replace(self.progress, stage="end")
            self.sync()

    def _eval_batch(self, batch: Any, losses: dict[str, RunningMean], divisors: Divisors) -> None:
        self.notify("on_eval_step_start")
        with divisors.watching(self.trainer, "loss_func", "eval_loss_fn"):
            output = self.trainer.calculate_eval_batch_loss(batch)
        divisor = divisors.take(output["batch_size"])
        for name, loss in losses.items():
            if (key := f"{metric_prefix(name)}loss") in output:
                loss.update(output[key], output["batch_size"], divisor, divisors.sums, skips_empty=True)
        self.trainer.update_metrics(batch, output)
        self.notify("on_eval_step_end", batch_output=output, batch=batch)

    @contextmanager
    def _evaluating(self, is_intermediate: bool) -> Iterator[None]:
        """Use the unwrapped model in place of the wrapped one; an intermediate evaluation changes nothing."""
        trainer, history = self.trainer, self.trainer.run_history
        wrapped, tracker, prefix = trainer.model, trainer._loss_tracker, history.metric_name_prefix
        trainer.model = self.unwrapped_model
        modes = {module: module.training for module in trainer.model.modules()} if is_intermediate else {}
        if is_intermediate:
            history.set_metric_name_prefix(f"{prefix}intermediate_")
        try:
            yield
        finally:
            trainer.model = wrapped
            if is_intermediate:
                trainer._loss_tracker = tracker
                history.set_metric_name_prefix(prefix)
            for module, mode in modes.items():
                module.training = mode

    def _prefetched(
        self, speed: Speed, batches: Iterable, loader: Any = None, start: int | None = None
    ) -> Iterator[Any]:
        """Yield the batches after on-device normalization and random erasing.

        Args:
            speed: It counts the time spent waiting for the loader.
            batches: The remaining batches of the loader.
            loader: The loader; None if `batches` is the loader.
            start: The number of the first batch in the training epoch; None in evaluation, where nothing is random.
        """
        trainer, numbers = self.trainer, count(start or 0)
        self.loader_workers.watch(batches)
        transform = device_transform_of(batches if loader is None else loader)

        def finish(batch: Any) -> Any:
            number = next(numbers)
            if transform is None or batch is None:
                return batch
            if start is not None and transform.is_random:
                seed_prefetch(trainer.seed, self.epoch or 0, number, self.rank, trainer.device)
            inputs, targets = trainer.unpack_batch(batch)
            return trainer.repack_batch(batch, transform(inputs), targets)

        def check(number: int, batch: Any) -> Any:
            return None if batch is None else trainer.checked_batch(batch, number, training=start is not None)

        return map(check, count(start or 0), prefetch(speed.waiting(batches), finish, trainer.device))

    def _record(self, means: dict[str, RunningMean]) -> None:
        for name, mean in global_means(means, self.accelerator).items():
            self.trainer.run_history.update_metric(name, mean)

    def notify(self, event: str, **kwargs: Any) -> None:
        """Call an event on all callbacks."""
        self.trainer.callback_handler.call_event(event, self.trainer, **kwargs)

    def request_stop(self, stop: Stop, reason: str) -> None:
        """Request that all processes stop at the next sync point."""
        if self._consensus is not None:
            self._consensus.request_stop(stop, reason)

    def request_save(self, milestone: bool, everywhere: bool) -> None:
        """Request that a state is saved at the next sync point."""
        if self._consensus is not None:
            self._consensus.request_save(milestone, everywhere)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value on rank 0, and nothing on the others. Collective."""
        assert self._consensus is not None
        return self._consensus.gather(value)

    def sum_over_ranks(self, value: int) -> int:
        """Return the sum of every process's value. Collective."""
        assert self._consensus is not None
        return self._consensus.sum(value)

    def sync_is_due(self) -> bool:
        """Whether ranks sync after this update: every ``sync_every_n_updates``, or when all know of a request."""
        assert self._consensus is not None
        return self.num_updates % self.trainer.sync_every_n_updates == 0 or self._consensus.due()

    def sync(self) -> None:
        """Let the processes agree on their requests, and act on them. Collective.

        Raises:
            StopTrainingError: One of them requested to stop.
        """
        if self._consensus is None:
            return
        self.late_reads.look()
        self.agreed = self._consensus.sync(before_acting=self.late_reads.look_at_all)
        self._save_as_agreed()
        if self.agreed.stop is not None:
            raise StopTrainingError(self.agreed.reason)

    def _save_as_agreed(self) -> None:
        """Do nothing: an evaluation has no state."""

    @contextmanager
    def _agreeing(self) -> Iterator[None]:
        """Let processes request to stop and to save; at the end, all exit as they agreed."""
        self._consensus = Consensus(self.accelerator.num_processes)
        try:
            with lost_connection_explained(), loader_errors_explained():
                yield
        finally:
            self._consensus = self.epoch = self.batch_index = None
        if self.agreed.stop == Stop.FAILED:
            raise RuntimeError(self.agreed.reason)
        if self.agreed.stop == Stop.INTERRUPTED:
            self._exit_for_requeue()

    def _exit_for_requeue(self) -> None:
        raise RuntimeError(
            f"Expected a state to be written before the exit ({self.agreed.reason}), but an evaluation has none. "
            "Evaluate again."
        )

    def _stopped(self, stop: StopTrainingError) -> None:
        if self.agreed.stop != Stop.FAILED:  # its sentence is raised
            self.trainer.print(stop)
        self.notify("on_stop_training_error")

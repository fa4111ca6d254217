"""The loop: pytorch-accelerated's `Trainer` with its run, training epoch and evaluation epoch rewritten."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from timm_accel.data.seeding import seed_feed, seed_order, seed_step
from timm_accel.states.consensus import on_main_process
from timm_accel.states.running_mean import RunningMean, global_means
from timm_accel.states.weights import metric_prefix
from timm_accel.training.deciding import DecidingTrainer
from timm_accel.training.loaders import remaining, set_epoch
from timm_accel.training.prefetch import feed
from timm_accel.training.saving import Progress
from timm_accel.upstream import DataLoaderSlice, StopTrainingError


class LoopTrainer(DecidingTrainer):
    """pytorch-accelerated's `Trainer` with a loop that is right, and the surface that the mixins stand on.

    Upstream's public hooks keep their names, order and meaning. One update is: seed the step, forward, loss, backward,
    `clip_gradients`, ``optimizer_step``, `after_update`, ``scheduler_step``, ``optimizer_zero_grad``, the event
    ``on_update_end``. The recorded losses are true means over images, whatever the accumulation; a shorter last group
    of micro-batches is scaled by its own size. Evaluation runs the unwrapped model, so processes may have different
    numbers of batches.

    Args:
        model: The model to train.
        loss_func: Called with (outputs, targets); returns the mean loss.
        optimizer: The optimizer of the model's parameters.
        callbacks: Classes or instances; upstream's that are known to be wrong are exchanged for ours or refused.
        run_history: Upstream's history; in memory by default.
        seed: The only seed: with it a run is repeatable, whatever the number of workers.
        run_dir: The folder that callbacks write to, states among them. It must not hold a run, unless that is resumed.
        agree_every: Updates between two moments at which several processes agree on saving and stopping.
        recipe: Plain values that describe the run. They are kept in its states, and a state with others is refused.

    Raises:
        RuntimeError: By `train` and `evaluate`, when a stop was requested as failed (a loss that is not finite).
        BlockingIOError: By `train`, when another run goes on in `run_dir`.
        SystemExit: By `train`, with exit code 75, when the run was interrupted and is to go on later.

    Source: ``pytorch_accelerated.trainer.Trainer`` 0.1.61.
    """

    _needs_rehearsal = False

    def evaluate(self, dataset: Any = None, *args: Any, **kwargs: Any) -> None:
        if self._agreement is not None:
            raise RuntimeError(
                "Expected evaluate() outside a run, since it starts the history anew, but got it within one. Use "
                "pytorch-accelerated's StepBasedEvaluationCallback to evaluate in between."
            )
        super().evaluate(dataset, *args, **kwargs)

    def _run_training(self) -> None:
        self._num_updates, self._progress = 0, Progress(learning_rate=self.learning_rate)
        self._loss_tracker = RunningMean(self.device)
        with self._agreeing(), self._heeding_signals():
            if self.keep_states is not None:
                on_main_process(self._accelerator, self._begin_states)
            self.training_run_start()
            self.callback_handler.call_event("on_training_run_start", self)
            if self.keep_states is not None:
                self._common_part()  # raises now for what cannot be saved
            if self._resumed is not None:
                self._restore(self._resumed)
                self._needs_rehearsal = self._accelerator.num_processes > 2 and self._num_updates > 0
                if self.keep_states is not None and self._resume_from != "auto":
                    self._save_state(False, self._resumed.manifest["stopped"])  # "auto" now goes on from here
            try:
                self._run_epochs()
            except StopTrainingError as stop:
                self._stopped(stop)
                if self._agreed.stop is None and self._batch_index is None and self.keep_states is not None:
                    self._save_state(False, str(stop))  # a callback of upstream's ended the run by itself
            self._epoch = self._batch_index = None
            self.training_run_end()
            self.callback_handler.call_event("on_training_run_end", self)

    def _run_epochs(self) -> None:
        if self._already_finished():
            return
        for epoch in range(self._progress.epoch, self.run_config.num_epochs):
            self._epoch = epoch
            if self._progress.stage == "train":
                self._run_train_epoch(self._train_dataloader)
            if self._progress.stage == "evaluate" and self.eval_dataset is not None:
                self._run_eval_epoch(self._eval_dataloader)
            self.training_run_epoch_end()
            self.callback_handler.call_event("on_training_run_epoch_end", self)
            self.run_history._increment_epoch()
            self._progress = Progress(epoch + 1, learning_rate=self.learning_rate)
            self._agree()
            if self._reached_max_steps():
                break

    def _already_finished(self) -> bool:
        if self._resumed is None:
            return False
        saved, num_epochs = self._resumed.manifest, self.run_config.num_epochs
        stopped = saved["stopped"] if saved["num_epochs"] >= num_epochs else None
        if stopped is None and self._progress.epoch < num_epochs:
            return False
        self.print(f"Already finished: {stopped or f'all {self._progress.epoch} epochs are done.'}")
        return True

    def _reached_max_steps(self) -> bool:
        return self._num_updates >= self.run_config.max_num_train_steps

    def _run_evaluation(self) -> None:
        with self._agreeing():
            self.evaluation_run_start()
            self.callback_handler.call_event("on_evaluation_run_start", self)
            try:
                self._run_eval_epoch(self._eval_dataloader, is_training=False)
            except StopTrainingError as stop:
                self._stopped(stop)
            self.evaluation_run_end()
            self.callback_handler.call_event("on_evaluation_run_end", self)

    def _run_train_epoch(self, train_dl: Iterable) -> None:
        set_epoch(train_dl, self._epoch or 0)
        seed_order(self.seed, self._epoch or 0)  # for hooks that draw
        self.train_epoch_start()
        self._loss_tracker, self._resumed_loss = self._resumed_loss or RunningMean(self.device), None
        self.callback_handler.call_event("on_train_epoch_start", self)
        start = self._progress.batch
        group = self.run_config.gradient_accumulation_steps
        num_batches = _count(train_dl)
        tail_start = num_batches - num_batches % group
        seed_order(self.seed, self._epoch or 0)
        batches = () if self._reached_max_steps() or start >= num_batches else remaining(train_dl, start)
        for index, batch in enumerate(self._fed(batches, self.train_dataset, start), start):
            self._batch_index = index
            if index == start and self._needs_rehearsal:
                self._rehearse(batch)
            ends_group = (index + 1) % group == 0 or index + 1 == num_batches
            with nullcontext() if ends_group else self._accelerator.no_sync(self.model):
                self._run_micro_batch(batch, group if index < tail_start else num_batches - tail_start)
            if ends_group:
                self._progress = replace(self._progress, batch=index + 1)
                self._run_update()
                if self._reached_max_steps():
                    break
        self._batch_index = None
        self.train_epoch_end()
        self._record({"model": self._loss_tracker}, "train_loss_epoch")
        self.callback_handler.call_event("on_train_epoch_end", self)
        self._progress = replace(self._progress, batch=0, stage="evaluate")
        self._agree()

    def _fed(self, batches: Iterable, dataset: Any, start: int | None = None) -> Iterator[Any]:
        """Yield the batches with the end of their images' way done on the device; in training it may draw.

        Args:
            batches: What the loader gives.
            dataset: What it is over.
            start: The number of the first batch in the training epoch; None in evaluation.
        """
        transform = getattr(dataset, "device_transform", None)
        numbers = count(start or 0)

        def make_ready(batch: Any) -> Any:
            number = next(numbers)
            if transform is None or batch is None:
                return batch
            if start is not None and transform.is_random:
                seed_feed(self.seed, self._epoch or 0, number, self.rank, self.device)
            images, *rest = batch
            return [transform(images), *rest]

        return feed(batches, make_ready, self.device)

    def _rehearse(self, batch: Any) -> None:
        """Run a batch for nothing, so that DDP groups the gradients as it did before the run was cut.

        It groups them anew after its first backward pass, and sums over three or more processes round by the grouping
        (torch 2.14): the first update of a resumed run would differ in its last bits.
        """
        self._needs_rehearsal = False
        modules = self._modules()
        kept = {name: deepcopy(module.state_dict()) for name, module in modules.items()}
        self.backward_step(self.calculate_train_batch_loss(deepcopy(batch))["loss"])
        self.optimizer_zero_grad()
        for name, module in modules.items():
            module.load_state_dict(kept[name])

    def _run_micro_batch(self, batch: Any, group: int) -> None:
        """Run one forward and backward pass; `group` micro-batches share the update."""
        self.callback_handler.call_event("on_train_step_start", self)
        assert self._epoch is not None
        assert self._batch_index is not None
        seed_step(self.seed, self._epoch, self._batch_index, self.rank, self.device)
        output = self.calculate_train_batch_loss(batch)
        self._loss_tracker.update(output["loss"], output["batch_size"])
        self.callback_handler.call_event(
            "on_train_step_end", self, batch_output=output, batch=batch, step=self._batch_index
        )
        self.backward_step(output["loss"] / group if group > 1 else output["loss"])

    def _run_update(self) -> None:
        self.clip_gradients()
        updated = self._step_optimizer()
        if updated:
            self._num_updates += 1
            self.after_update()
            if self.scheduler is not None:
                self.scheduler_step()
        self.optimizer_zero_grad()
        if updated:
            self.callback_handler.call_event("on_update_end", self)
            if self._num_updates % self.agree_every == 0 or (self._agreement is not None and self._agreement.due()):
                self._agree()

    def _step_optimizer(self) -> bool:
        """Step, and return False when fp16's scaler skipped it, which accelerate 1.15 misses for fused optimizers."""
        scaler = self._accelerator.scaler
        scale = None if scaler is None else scaler.get_scale()
        self.optimizer_step()
        if scaler is None:
            return True
        return not self._accelerator.optimizer_step_was_skipped and scaler.get_scale() >= scale

    def _run_eval_epoch(self, valid_dl: Iterable, is_training: bool = True, is_intermediate: bool = False) -> None:
        with self._evaluating(is_intermediate):
            self.eval_epoch_start()
            losses = {name: RunningMean(self.device) for name in self.weights()}
            self._loss_tracker = losses["model"]
            unlimited = self._eval_dataloader
            self.callback_handler.call_event("on_eval_epoch_start", self, is_intermediate=is_intermediate)
            limited = self._eval_dataloader is not unlimited
            with torch.no_grad():
                batches = self._eval_dataloader if limited else valid_dl
                for batch in self._fed(batches, self.eval_dataset):
                    self._run_eval_batch(batch, losses)
            self.eval_epoch_end()
            name = "evaluation_loss" if not is_training else "eval_loss" if is_intermediate else "eval_loss_epoch"
            self._record(losses, name)
            self.callback_handler.call_event("on_eval_epoch_end", self, is_intermediate=is_intermediate)
        if not is_intermediate:
            if is_training:
                self._progress = replace(self._progress, stage="end")
            self._agree()

    def _run_eval_batch(self, batch: Any, losses: dict[str, RunningMean]) -> None:
        if batch is None:  # none of its images could be read
            return
        self.callback_handler.call_event("on_eval_step_start", self)
        output = self.calculate_eval_batch_loss(batch)
        for name, loss in losses.items():
            key = f"{metric_prefix(name)}loss"
            if key in output:
                loss.update(output[key], output["batch_size"])
        self.update_metrics(batch, output)
        self.callback_handler.call_event("on_eval_step_end", self, batch_output=output, batch=batch)

    @contextmanager
    def _evaluating(self, is_intermediate: bool) -> Iterator[None]:
        """Stand the unwrapped model in for the wrapped one; after an intermediate evaluation nothing has changed."""
        wrapped, tracker, prefix = self.model, self._loss_tracker, self.run_history.metric_name_prefix
        self.model = self.unwrapped_model
        modes = {module: module.training for module in self.model.modules()} if is_intermediate else {}
        if is_intermediate:
            self.run_history.set_metric_name_prefix(f"{prefix}intermediate_")
        try:
            yield
        finally:
            self.model = wrapped
            if is_intermediate:
                self._loss_tracker = tracker
                self.run_history.set_metric_name_prefix(prefix)
            for module, mode in modes.items():
                module.training = mode

    def _record(self, losses: dict[str, RunningMean], name: str) -> None:
        for weights_name, mean in global_means(losses, self._accelerator).items():
            self.run_history.update_metric(f"{metric_prefix(weights_name)}{name}", mean)

    def _stopped(self, stop: StopTrainingError) -> None:
        self.print(stop)
        self.callback_handler.call_event("on_stop_training_error", self)


def _count(loader: Any) -> int:
    """Return the number of batches that will come: a slice may promise more than its loader has."""
    return min(len(loader), len(loader.dl)) if isinstance(loader, DataLoaderSlice) else len(loader)

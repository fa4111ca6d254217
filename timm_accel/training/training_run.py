"""The training loop, from top to bottom: run, epochs, micro-batches, updates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.data.seeding import seed_order, seed_step
from timm_accel.states.consensus import Stop
from timm_accel.states.running_mean import RunningMean
from timm_accel.training import snapshot
from timm_accel.training.loaders import count_batches, remaining, set_epoch
from timm_accel.training.run import Run
from timm_accel.training.signals import stop_signals
from timm_accel.training.snapshot import Progress
from timm_accel.upstream import StopTrainingError

if TYPE_CHECKING:
    from timm_accel.training.checkpointer import Checkpointer
    from timm_accel.training.trainer import LoopTrainer


class TrainingRun(Run):
    """One training run: its progress, its states, and the loop.

    Args:
        trainer: The trainer.
        checkpointer: Finds, restores and saves the states of the run.
    """

    def __init__(self, trainer: LoopTrainer, checkpointer: Checkpointer) -> None:
        super().__init__(trainer)
        self.checkpointer = checkpointer
        self.resumed_loss: RunningMean | None = None
        self._saved = self._rebuilds_buckets = False

    def belongs_to_run(self, path: Path) -> bool:
        return self.checkpointer.belongs_to_run(path)

    def execute(self) -> None:
        """Train for all remaining epochs, between upstream's hooks and events."""
        trainer, checkpointer = self.trainer, self.checkpointer
        self.progress = Progress(learning_rate=self.learning_rate)
        trainer._loss_tracker = RunningMean(trainer.device)
        with self._agreeing(), self._handling_signals():
            checkpointer.begin()
            trainer.training_run_start()
            self.notify("on_training_run_start")
            if checkpointer.keeps_states:
                snapshot.take_shared(trainer)  # raises now if something cannot be saved
            if checkpointer.resumed is not None:
                checkpointer.restore(self)
                self._rebuilds_buckets = self.accelerator.num_processes > 2 and self.num_updates > 0
            try:
                self._epochs()
            except StopTrainingError as stop:
                self._stopped(stop)
            self.epoch = self.batch_index = None
            trainer.training_run_end()
            self.notify("on_training_run_end")

    def _epochs(self) -> None:
        trainer = self.trainer
        if self._already_finished():
            return
        for epoch in range(self.progress.epoch, trainer.run_config.num_epochs):
            self.epoch = epoch
            if self.progress.stage == "train":
                trainer._run_train_epoch(trainer._train_dataloader)
            if self.progress.stage == "evaluate" and trainer.eval_dataset is not None:
                trainer._run_eval_epoch(trainer._eval_dataloader)
            trainer.training_run_epoch_end()
            self.notify("on_training_run_epoch_end")
            trainer.run_history._increment_epoch()
            self.progress = Progress(epoch + 1, learning_rate=self.learning_rate)
            self.sync()
            if self._reached_max_steps():
                break

    def train_epoch(self, loader: Iterable) -> None:
        """Train on all remaining batches of the epoch."""
        trainer, epoch = self.trainer, self.epoch or 0
        set_epoch(loader, epoch)
        seed_order(trainer.seed, epoch)  # for hooks that draw random numbers
        trainer.train_epoch_start()
        trainer._loss_tracker, self.resumed_loss = self.resumed_loss or RunningMean(trainer.device), None
        self.notify("on_train_epoch_start")
        seed_order(trainer.seed, epoch)
        for batch, group, ends_group in self._micro_batches(loader):
            with nullcontext() if ends_group else self.accelerator.no_sync(trainer.model):
                self._micro_batch(batch, group)
            if ends_group:
                self.progress = replace(self.progress, batch=(self.batch_index or 0) + 1)
                self._update()
                if self._reached_max_steps():
                    break
        self.batch_index = None
        trainer.train_epoch_end()
        self._record({"model": trainer._loss_tracker}, "train_loss_epoch")
        self.notify("on_train_epoch_end")
        self.progress = replace(self.progress, batch=0, stage="evaluate")
        self.sync()

    def _micro_batches(self, loader: Any) -> Iterator[tuple[Any, int, bool]]:
        """Yield each batch, the size of its accumulation group, and whether it is the last of the group."""
        accumulation, start = self.trainer.run_config.gradient_accumulation_steps, self.progress.batch
        num_batches = count_batches(loader)
        tail = num_batches % accumulation
        batches = () if self._reached_max_steps() or start >= num_batches else remaining(loader, start)
        for index, batch in enumerate(self._prefetched(batches, loader, start), start):
            self.batch_index = index
            if index == start and self._rebuilds_buckets:
                self._rebuild_buckets(batch)
            ends_group = (index + 1) % accumulation == 0 or index + 1 == num_batches
            yield batch, accumulation if index < num_batches - tail else tail, ends_group

    def _micro_batch(self, batch: Any, group: int) -> None:
        """Run one forward and backward pass; the accumulation group has `group` micro-batches."""
        trainer = self.trainer
        assert self.epoch is not None
        assert self.batch_index is not None
        self.notify("on_train_step_start")
        seed_step(trainer.seed, self.epoch, self.batch_index, self.rank, trainer.device)
        output = trainer.calculate_train_batch_loss(batch)
        trainer._loss_tracker.update(output["loss"], output["batch_size"])
        self.notify("on_train_step_end", batch_output=output, batch=batch, step=self.batch_index)
        trainer.backward_step(output["loss"] / group if group > 1 else output["loss"])

    def _update(self) -> None:
        trainer = self.trainer
        trainer.clip_gradients()
        updated = self._step_optimizer()
        if updated:
            self.num_updates += 1
            trainer.after_update()
            if trainer.scheduler is not None:
                trainer.scheduler_step()
        trainer.optimizer_zero_grad()
        if updated:
            self.notify("on_update_end")
            if self.sync_is_due():
                self.sync()

    def _step_optimizer(self) -> bool:
        """Step, and return False if fp16's scaler skipped it, which accelerate 1.15 misses for fused optimizers."""
        scaler = self.accelerator.scaler
        scale = None if scaler is None else scaler.get_scale()
        self.trainer.optimizer_step()
        if scaler is None:
            return True
        return not self.accelerator.optimizer_step_was_skipped and scaler.get_scale() >= scale

    def _rebuild_buckets(self, batch: Any) -> None:
        """Run a dummy step, so that DDP has the gradient buckets that it had before the run was interrupted.

        DDP rebuilds its buckets after its first backward pass, and over three or more ranks the rounding of sums
        depends on the buckets (torch 2.14): the first update of a resumed run would differ in its last bits.
        """
        self._rebuilds_buckets = False
        trainer, modules = self.trainer, snapshot.modules_of(self.trainer)
        kept = {name: deepcopy(module.state_dict()) for name, module in modules.items()}
        trainer.backward_step(trainer.calculate_train_batch_loss(deepcopy(batch))["loss"])
        trainer.optimizer_zero_grad()
        for name, module in modules.items():
            module.load_state_dict(kept[name])

    def _reached_max_steps(self) -> bool:
        return self.num_updates >= self.trainer.run_config.max_num_train_steps

    def _already_finished(self) -> bool:
        resumed, num_epochs = self.checkpointer.resumed, self.trainer.run_config.num_epochs
        if resumed is None:
            return False
        saved = resumed.manifest
        stopped = saved["stopped"] if saved["num_epochs"] >= num_epochs else None
        if stopped is None and self.progress.epoch < num_epochs:
            return False
        self.trainer.print(f"Already finished: {stopped or f'all {self.progress.epoch} epochs are done.'}")
        return True

    def _stopped(self, stop: StopTrainingError) -> None:
        super()._stopped(stop)
        if self.agreed.stop is None and self.batch_index is None and self.checkpointer.keeps_states:
            self.checkpointer.save(self, stopped=str(stop))  # a callback from upstream ended the run

    def _save_as_agreed(self) -> None:
        agreed, checkpointer = self.agreed, self.checkpointer
        may_save = checkpointer.run_dir is not None and agreed.stop != Stop.FAILED
        stops = agreed.stop == Stop.INTERRUPTED or (agreed.stop == Stop.FINISHED and checkpointer.keeps_states)
        self._saved = may_save and (agreed.save or stops)
        if self._saved:
            reason = agreed.reason if agreed.stop == Stop.FINISHED else None
            self._saved = checkpointer.save(self, agreed.milestone, reason)

    def _handling_signals(self) -> AbstractContextManager[None]:
        """If the run saves states, end it on SIGTERM and SIGINT at the next sync point, with a state."""
        if not self.checkpointer.keeps_states:
            return nullcontext()
        return stop_signals(lambda name: self.request_stop(Stop.INTERRUPTED, f"Received {name}."))

    def _exit_for_requeue(self) -> None:
        if not self._saved:
            raise RuntimeError(
                f"Expected a state to be written before the exit ({self.agreed.reason}), but it could not be. "
                "Free disk space, or fix the run folder."
            )
        self.trainer.print(
            f"Interrupted; the state is {str(self.checkpointer.last_state)!r}. Start the same run again with "
            "resume_from='auto' (--resume auto on the command line) to resume."
        )
        self.accelerator.end_training()  # gloo aborts at exit otherwise
        raise SystemExit(os.EX_TEMPFAIL)

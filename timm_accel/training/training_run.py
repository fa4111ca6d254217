"""The training loop, from top to bottom: run, epochs, micro-batches, updates."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.data.seeding import seed_order, seed_step
from timm_accel.distributed.consensus import Stop
from timm_accel.losses import Divisors
from timm_accel.messages import counted
from timm_accel.states.running_mean import RunningMean
from timm_accel.states.speed import Speed, reset_peak_memory
from timm_accel.training import snapshot
from timm_accel.training.gradient_group import GradientGroup, multiply_gradients, with_last
from timm_accel.training.loaders import count_batches, remaining, set_epoch
from timm_accel.training.run import Run
from timm_accel.training.signals import EXIT_FOR_REQUEUE, stop_signals
from timm_accel.training.snapshot import Progress
from timm_accel.upstream import StopTrainingError, remembered_lookups

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
        self._saved = self._rebuilds_buckets = self._said_wrong_length = False
        self._divisors = Divisors()
        self._group: GradientGroup

    def belongs_to_run(self, path: Path) -> bool:
        return self.checkpointer.belongs_to_run(path)

    @property
    def has_other_evaluation(self) -> bool:
        return self.checkpointer.data is not None and self.checkpointer.data.has_other_evaluation

    def execute(self) -> None:
        """Train for all remaining epochs, between upstream's hooks and events."""
        trainer, checkpointer = self.trainer, self.checkpointer
        self.progress = Progress(learning_rate=self.learning_rate)
        trainer._loss_tracker = RunningMean(trainer.device)
        with self._agreeing(), self._handling_signals(), remembered_lookups():
            trainer.training_run_start()  # what mixins refuse leaves nothing in the run folder
            checkpointer.begin()
            self.notify("on_training_run_start")
            if checkpointer.keeps_states:
                snapshot.take_shared(trainer, checkpointer.growing)  # raises now if something cannot be saved
            if checkpointer.resumed is not None:
                checkpointer.restore(self)
                self._rebuilds_buckets = self.accelerator.num_processes > 2 and self.num_updates > 0
            try:
                self._epochs()
            except StopTrainingError as stop:
                self._stopped(stop)
            if checkpointer.run_dir is not None:
                checkpointer.settle(self)
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
                trainer._run_train_epoch(trainer._train_dataloader)  # a seam of upstream's, which calls `train_epoch`
            if self.progress.stage == "evaluate" and trainer.eval_dataset is not None and not self.skips_evaluation:
                trainer._run_eval_epoch(trainer._eval_dataloader)
            trainer.training_run_epoch_end()
            self.notify("on_training_run_epoch_end")
            trainer.run_history._increment_epoch()
            self.progress = Progress(epoch + 1, learning_rate=self.learning_rate)
            if self.checkpointer.keeps_states:
                self.checkpointer.growing.end_epoch(epoch + 1, lambda: snapshot.growing_lists(trainer))
            self.sync()
            if self._reached_max_steps():
                break

    @property
    def skips_evaluation(self) -> bool:
        trainer, epoch = self.trainer, self.progress.epoch + 1
        is_due = epoch % trainer.evaluate_every_n_epochs == 0 or epoch == trainer.run_config.num_epochs
        return trainer.eval_dataset is not None and not is_due and not self._reached_max_steps()

    def train_epoch(self, loader: Iterable) -> None:
        """Train on all batches that are left of the epoch, however many the loader gives."""
        trainer, epoch = self.trainer, self.epoch or 0
        set_epoch(loader, epoch)
        seed_order(trainer.seed, epoch)  # for hooks that draw random numbers
        trainer.train_epoch_start()
        trainer._loss_tracker, self.resumed_loss = self.resumed_loss or RunningMean(trainer.device), None
        if self.progress.batch == 0:
            self.begin_training_means()
        reset_peak_memory(trainer.device)
        self.speed = Speed(trainer._loss_tracker, self.accelerator)
        self.notify("on_train_epoch_start")
        seed_order(trainer.seed, epoch)
        with closing(self._micro_batches(loader)) as batches:
            for batch, ends_group in batches:
                with nullcontext() if ends_group else self.accelerator.no_sync(trainer.model):
                    self._micro_batch(batch)
                if ends_group:
                    self.progress = replace(self.progress, batch=(self.batch_index or 0) + 1)
                    self._update()
                    if self._reached_max_steps():
                        break
            else:
                self._check_number_of_batches(loader)
        self.batch_index = None
        self.late_reads.look_at_all()
        trainer.train_epoch_end()
        self._record({"train_loss_epoch": trainer._loss_tracker, **self.training_means})
        self.speed.end()  # the record has waited for the device
        self.notify("on_train_epoch_end")
        self.progress = replace(self.progress, batch=0, stage="evaluate")
        self.sync()

    def begin_training_means(self) -> None:
        """Count the metrics of a training epoch from zero."""
        self.training_means = {name: RunningMean(self.trainer.device) for name in self.trainer.training_metrics()}

    def _micro_batches(self, loader: Any) -> Generator[tuple[Any, bool]]:
        """Yield each batch, and whether it is the last of the micro-batches that share an update.

        The loader's end decides, not its length: some give fewer or more batches than they promise.
        """
        accumulation, start = self.trainer.run_config.gradient_accumulation_steps, self.progress.batch
        batches = () if self._reached_max_steps() else remaining(loader, start)
        processes = self.accelerator.num_processes
        self._group = group = GradientGroup(loader, accumulation, processes, self.sum_over_ranks)
        finished = with_last(self._prefetched(self.speed, batches, loader, start), group.looks_ahead)
        for index, (batch, is_last) in enumerate(finished, start):
            self.batch_index, group.is_last = index, is_last
            if index == start and self._rebuilds_buckets:
                self._rebuild_buckets(batch)
            yield batch, (index + 1) % accumulation == 0 or is_last

    def _micro_batch(self, batch: Any) -> None:
        """Run one forward and backward pass."""
        trainer = self.trainer
        assert self.epoch is not None
        assert self.batch_index is not None
        self.notify("on_train_step_start")
        seed_step(trainer.seed, self.epoch, self.batch_index, self.rank, trainer.device)
        with self._divisors.watching(trainer, "loss_func", objects=False):
            output = trainer.calculate_train_batch_loss(batch)
        weight = self._divisors.take(output["batch_size"])
        trainer._loss_tracker.update(output["loss"], output["batch_size"], weight, self._divisors.sums)
        trainer.update_training_metrics(batch, output)
        self.notify("on_train_step_end", batch_output=output, batch=batch, step=self.batch_index)
        divisor = self._group.divisor(self.batch_index, output["batch_size"])
        trainer.backward_step(output["loss"] if divisor == 1 else output["loss"] / divisor)

    def _update(self) -> None:
        trainer = self.trainer
        if (factor := self._group.correction()) != 1:
            groups = trainer.optimizer.param_groups
            stepped = (parameter for group in groups for parameter in group["params"])
            multiply_gradients(chain(trainer.model.parameters(), stepped), factor)
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

    def _check_number_of_batches(self, loader: Any) -> None:
        """Say once that a loader's length is wrong, and stop where it gives nothing to train on."""
        promised, epoch = count_batches(loader), (self.epoch or 0) + 1
        given = 0 if self.batch_index is None else self.batch_index + 1
        if given == 0 and self.progress.batch == 0 and not self._reached_max_steps():
            raise ValueError(
                f"Expected the training loader to give at least one batch in each epoch, but got none in epoch {epoch} "
                f"({promised} by its length). Return a new iterator from each call of __iter__."
            )
        if given and given != promised and not self._said_wrong_length:
            self._said_wrong_length = True
            self.trainer.print(
                f"The training loader has a length of {counted(promised, 'batch')}, but gave {given} in epoch "
                f"{epoch}. All of them were trained on; the schedule follows the length."
            )

    def _reached_max_steps(self) -> bool:
        return self.max_updates is not None and self.num_updates >= self.max_updates

    def _already_finished(self) -> bool:
        resumed, num_epochs = self.checkpointer.resumed, self.trainer.run_config.num_epochs
        if resumed is None:
            return False
        saved = resumed.manifest
        stopped = saved["stopped"] if saved["num_epochs"] >= num_epochs else None
        if stopped is None and self.progress.epoch < num_epochs:
            return False
        done = f"all {self.progress.epoch} epochs are done." if self.progress.epoch > 1 else "its epoch is done."
        self.trainer.print(f"Already finished: {stopped or done}")
        return True

    def _stopped(self, stop: StopTrainingError) -> None:
        super()._stopped(stop)
        if self.agreed.stop is None and self.batch_index is None and self.checkpointer.keeps_states:
            self.checkpointer.save(self, stopped=str(stop))  # a callback from upstream ended the run

    def sync(self) -> None:
        if self._consensus is not None and self.checkpointer.has_outcome():
            self._consensus.request_outcome()
        super().sync()

    def _save_as_agreed(self) -> None:
        agreed, checkpointer = self.agreed, self.checkpointer
        if agreed.outcome:
            checkpointer.settle(self)
        may_save = checkpointer.run_dir is not None and agreed.stop != Stop.FAILED
        stops = agreed.stop == Stop.INTERRUPTED or (agreed.stop == Stop.FINISHED and checkpointer.keeps_states)
        self._saved = may_save and (agreed.save or stops)
        if self._saved:
            reason = agreed.reason if agreed.stop == Stop.FINISHED else None
            self._saved = checkpointer.save(self, agreed.milestone, reason, waits=agreed.stop is not None)

    def _handling_signals(self) -> AbstractContextManager[None]:
        """If the run saves states, end it on a signal at the next sync point, with a state."""
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
        raise SystemExit(EXIT_FOR_REQUEUE)

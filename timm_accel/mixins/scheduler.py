"""Step timm's learning-rate schedulers after updates and epochs."""

from typing import Any, ClassVar

from timm.scheduler import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from timm_accel.schedules.arguments import check_scheduler_args
from timm_accel.schedules.fitting import bent_warmup, check_fits, create_schedule
from timm_accel.training import LoopTrainer


class TimmSchedulerMixin(LoopTrainer):
    """Step a timm scheduler after every update (``step_update``) and after every epoch (``step``), never in `evaluate`.

    A schedule comes from `scheduler_args`, from an overridden ``create_scheduler()``, or from ``create_scheduler_fn``
    in `train`; without any of them there is no scheduler. torch's schedulers are stepped after every update, as
    upstream does, and ``ReduceLROnPlateau`` after every epoch. Layer decay (``lr_scale`` in the optimizer's groups),
    which only timm's schedulers know of, works with all.

    `scheduler_step` calls ``super()`` for torch's schedulers only: upstream's body cannot step timm's. So do
    `scheduler_state` and `restore_scheduler`: timm's schedules, except plateau, depend only on the epochs and updates
    done.

    Args:
        scheduler_args: Keyword arguments of timm's ``create_scheduler_v2``. Unless ``num_epochs`` is among them,
            warm-up prefix, cycles and cooldown share the run's epochs (`timm_accel.schedules.create_schedule`). Those
            of a class, ``default_scheduler_args``, have a shorter warm-up in a short run: at most half of it.
        scheduler_metric: The metric that a plateau schedule watches: lower is better if "loss" is in its name, higher
            otherwise, unless `scheduler_args` has a ``plateau_mode``. Without evaluation data it is the training loss.

    Raises:
        ValueError: An argument or the scheduler's name is unknown; in `train`, the schedule does not fit a run that no
            ``max_num_train_steps`` cuts.

    Source: ``timm.scheduler``.
    """

    default_scheduler_args: ClassVar[dict[str, Any] | None] = None

    def __init__(
        self,
        *args: Any,
        scheduler_args: dict[str, Any] | None = None,
        scheduler_metric: str = "eval_loss_epoch",
        **kwargs: Any,
    ) -> None:
        check_scheduler_args(scheduler_args or {})
        self.scheduler_args, self.scheduler_metric = scheduler_args, scheduler_metric
        super().__init__(*args, **kwargs)

    def before_prepare(self) -> None:
        overridden = type(self).create_scheduler is not TimmSchedulerMixin.create_scheduler
        given = overridden or self.scheduler_args is not None
        if given and self.create_scheduler_fn is None and self.current_run().train_dataloader is not None:
            self.create_scheduler_fn = self.create_scheduler  # otherwise upstream creates none
        super().before_prepare()

    def training_run_start(self) -> None:
        self.check_metric("scheduler_metric", self._metric_name())
        if self._is_plateau() and self.evaluate_every_n_epochs > 1 and self._metric_name() != "train_loss_epoch":
            raise ValueError(
                f"Expected evaluate_every_n_epochs to be 1, since the schedule follows {self._metric_name()!r} in each "
                f"epoch, but got {self.evaluate_every_n_epochs}. Leave it out, or watch 'train_loss_epoch'."
            )
        super().training_run_start()

    def create_scheduler(self) -> Any:
        if self.create_scheduler_fn not in (None, self.create_scheduler):
            if self.scheduler_args is not None:
                raise ValueError("Expected scheduler_args or create_scheduler_fn, but got both. Leave one of them out.")
            return super().create_scheduler()
        scheduler_args = self.scheduler_args or self._default_for_run()
        if scheduler_args is None:
            raise ValueError(
                "Expected scheduler_args beside create_scheduler_fn=trainer.create_scheduler, but got none. "
                "Pass scheduler_args={'sched': 'cosine'}, or override create_scheduler()."
            )
        config = self.run_config
        length = {"num_epochs": config.num_epochs, "updates_per_epoch": self.current_run().updates_per_epoch}
        uncut = config.max_num_train_steps >= config.num_epochs * self.current_run().updates_per_epoch
        if self.scheduler_args is not None and uncut:
            check_fits(scheduler_args, **length)
        mode = {"plateau_mode": "min" if "loss" in self._metric_name() else "max"}
        return create_schedule(self.current_run().unwrapped_optimizer, mode | scheduler_args, **length)

    def _default_for_run(self) -> dict[str, Any] | None:
        """Return `default_scheduler_args` with a warm-up that a short run has room for."""
        default = self.default_scheduler_args
        if default is None or "warmup_epochs" not in default:
            return default
        warmup = bent_warmup(default, self.run_config.num_epochs)
        if warmup != default["warmup_epochs"]:
            self.print(f"The warm-up is {warmup} instead of {default['warmup_epochs']} epochs, since the run is short.")
        return {**default, "warmup_epochs": warmup}

    def optimizer_step(self) -> None:
        """Step, with the learning rates scaled by ``lr_scale``; timm's schedulers scale them themselves."""
        groups = [] if isinstance(self.scheduler, Scheduler) else self.optimizer.param_groups
        learning_rates = [(group, group["lr"]) for group in groups if group.get("lr_scale", 1.0) != 1.0]
        for group, lr in learning_rates:
            group["lr"] = lr * group["lr_scale"]
        try:
            super().optimizer_step()
        finally:
            for group, lr in learning_rates:
                group["lr"] = lr

    def scheduler_step(self) -> None:
        if isinstance(self.scheduler, Scheduler):
            self.scheduler.step_update(self.current_run().num_updates)
        elif not isinstance(self.scheduler, ReduceLROnPlateau):
            super().scheduler_step()

    def training_run_epoch_end(self) -> None:
        if isinstance(self.scheduler, Scheduler):
            self.scheduler.step(self.current_run().epochs_done + 1, self._metric() if self._is_plateau() else None)
        elif isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(self._metric())
        super().training_run_epoch_end()

    def _is_plateau(self) -> bool:
        return isinstance(self.scheduler, PlateauLRScheduler | ReduceLROnPlateau)

    def scheduler_state(self) -> dict[str, Any]:
        if isinstance(self.scheduler, PlateauLRScheduler):  # its state_dict() drops the counters (timm 1.0.31)
            return {"plateau": self.scheduler.lr_scheduler.state_dict(), "restore_lr": self.scheduler.restore_lr}
        return {} if isinstance(self.scheduler, Scheduler) else super().scheduler_state()

    def restore_scheduler(self, state: dict[str, Any], same_length: bool) -> bool:
        if isinstance(self.scheduler, PlateauLRScheduler):
            self.scheduler.lr_scheduler.load_state_dict(state["plateau"])
            self.scheduler.restore_lr = state["restore_lr"]
            return False
        if not isinstance(self.scheduler, Scheduler):
            return super().restore_scheduler(state, same_length)
        if same_length:  # the saved learning rates are those of the schedule
            return False
        epochs, updates = self.current_run().epochs_done, self.current_run().num_updates
        if epochs:  # at 0 the learning rates are the initial ones
            self.scheduler.step(epochs)
        if updates:
            self.scheduler.step_update(updates)
        return True

    def training_run_end(self) -> None:
        if isinstance(self.scheduler, Scheduler):  # the next run scales the learning rates itself
            for group in self.optimizer.param_groups:
                scale = group.get("lr_scale", 1.0)
                group["lr"] = group["lr"] / scale if scale else group.get("initial_lr", group["lr"])
        super().training_run_end()

    def _metric_name(self) -> str:
        return "train_loss_epoch" if self.eval_dataset is None else self.scheduler_metric

    def _metric(self) -> float:
        return self.latest_metric("scheduler_metric", self._metric_name())

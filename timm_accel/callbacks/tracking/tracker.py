"""Log a run to experiment trackers."""

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.recorded_metrics import FreshMetrics, plain_value
from timm_accel.callbacks.save_best import SaveBestCallback
from timm_accel.callbacks.tracking.journal import JOURNAL, Journal, Point
from timm_accel.callbacks.tracking.services import Service, check_trackers, require_packages
from timm_accel.distributed.consensus import Stop, on_main_process
from timm_accel.messages import nearest
from timm_accel.states.run_dir import check_run_dir

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_UPDATE, _EPOCH, _RUN = 0, 1, 2  # the order of points of one step


class TrackerCallback(Callback):
    """Log a run to TensorBoard, trackio, wandb, mlflow or other trackers of accelerate, on rank 0.

    The step is the number of optimizer updates. At each sync point it logs ``train_loss``, the mean over this rank's
    images since the point before in the same epoch, and ``lr``, with a further ``lr_group_N`` for each group of
    parameters that has another one; after each epoch ``epoch`` (from 1) and every metric that is a number; at the end
    of the run the best values of `SaveBestCallback`. TensorBoard writes into ``tensorboard/`` of the run folder.

    A resumed run continues the same run in each tracker, and every point is there once: ``trackers.jsonl`` in the run
    folder knows them. A tracker that fails during the run is reported, and the run continues.

    Args:
        trackers: Names that accelerate knows: ``tensorboard``, ``trackio``, ``wandb``, ``mlflow``, ….
        project: The project in trackers that have projects; None for ``timm_accel``.
        init_kwargs: Further arguments of each tracker by its name, as for accelerate's ``init_trackers``.
        config: The options of the run, as the trackers show them; None for the trainer's
            ``recipe``, with the length of the run and its seed.

    Raises:
        ModuleNotFoundError: The package of a tracker is not installed.
        ValueError: A name is unknown, or the trainer has no ``run_dir``.
        FileExistsError: At the start, if the run folder holds the journal of another run.
        RuntimeError: At the start, if a tracker does not start.
    """

    def __init__(
        self,
        trackers: str | Sequence[str],
        project: str | None = None,
        init_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.trackers = check_trackers(trackers)
        for name in init_kwargs or ():
            if name not in self.trackers:
                raise ValueError(
                    f"Expected init_kwargs to be of the trackers, but got {name!r}. {nearest(name, self.trackers)}"
                )
        require_packages(self.trackers)
        self.project, self.init_kwargs, self.config = project, dict(init_kwargs or {}), config
        self._services: list[Service] = []

    def on_init_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.run_dir is None:
            raise ValueError(
                "Expected TrackerCallback to have a folder, but got no run_dir of the trainer. "
                "Pass run_dir to the trainer."
            )

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        assert trainer.run_dir is not None
        folder, own = trainer.run_dir, trainer.belongs_to_run(trainer.run_dir / JOURNAL)
        on_main_process(trainer.current_run().accelerator, lambda: check_run_dir(folder, [] if own else [JOURNAL]))
        self._services, self._opened, self._loss = [], False, (0.0, 0.0)
        self._metrics = FreshMetrics(trainer.run_history)

    def state_dict(self) -> dict[str, Any]:
        """Return the loss up to the last point, and which metrics were logged."""
        return {"loss": list(self._loss), "seen": self._metrics.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self._loss = (state_dict["loss"][0], state_dict["loss"][1])
        self._metrics.load_state_dict(state_dict["seen"])

    def on_resumed(self, trainer: "LoopTrainer", state: Path, **kwargs: Any) -> None:
        self._open(trainer, resumed=True)

    def on_train_epoch_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if not self._opened:
            self._open(trainer, resumed=False)
        if trainer.current_run().batches_done == 0:
            self._loss = (0.0, 0.0)

    def _open(self, trainer: "LoopTrainer", resumed: bool) -> None:
        self._opened = True
        on_main_process(trainer.current_run().accelerator, lambda: self._start(trainer, resumed))

    def _start(self, trainer: "LoopTrainer", resumed: bool) -> None:
        assert trainer.run_dir is not None
        run, described = trainer.current_run(), self._described(trainer)
        self._journal = journal = Journal(trainer.run_dir / JOURNAL, trainer.print)
        about = journal.about
        same_updates = about.get("updates_per_epoch") == run.updates_per_epoch
        if same_updates and (resumed or about["described"] == described):
            journal.rewrite(about)
        else:
            number = about.get("number", 0) + 1
            suffix = f"_{number}" if number > 1 else ""
            name = f"{trainer.run_dir.resolve().name}-{uuid4().hex[:8]}"
            journal.begin(
                {"name": name, "number": number, "suffix": suffix, "ids": {}}
                | {"updates_per_epoch": run.updates_per_epoch, "described": described}
            )
        config = described if self.config is None else _plain(self.config)
        for name in self.trackers:
            service = Service(name, journal, trainer.print)
            run.at_exit.callback(service.close)
            service.start(trainer.run_dir, self.project, self.init_kwargs.get(name, {}), config)
            self._services.append(service)
        ids = {service.name: service.run_id for service in self._services if service.run_id is not None}
        journal.rewrite(journal.about | {"ids": ids})

    def _described(self, trainer: "LoopTrainer") -> dict[str, Any]:
        """Return what tells a run that begins again from another one."""
        config, run = trainer.run_config, trainer.current_run()
        options = {
            "num_epochs": config.num_epochs,
            "batch_size": config.train_per_device_batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "num_processes": run.accelerator.num_processes,
            "seed": trainer.seed,
        }
        return _plain(options | trainer.recipe)

    def on_update_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        run = trainer.current_run()
        if run.num_updates % trainer.sync_every_n_updates or not run.accelerator.is_main_process:
            return
        loss, moment = run.running_loss, _moment(trainer, _UPDATE)
        lrs = _learning_rates(trainer.optimizer.param_groups)
        run.late_reads.begin(
            loss.sum_and_weight(), lambda read: self._log(*moment, self._loss_since(read, loss.sums) | lrs)
        )

    def _loss_since(self, sum_and_weight: torch.Tensor, sums: bool) -> dict[str, float]:
        """Return the loss since the point before, from what a running loss is now."""
        read = sum_and_weight.item()
        (total_before, weight_before), self._loss = self._loss, (read.real, read.imag)
        divisor = 1.0 if sums else read.imag - weight_before
        return {"train_loss": (read.real - total_before) / divisor} if divisor else {}

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        fresh = plain_value(self._metrics.take(trainer.run_history))
        values = {name: float(value) for name, value in fresh.items() if isinstance(value, Real)}
        values |= trainer.current_run().speed.row()
        self._log(*_moment(trainer, _EPOCH), {"epoch": trainer.run_history.current_epoch} | values)

    def on_training_run_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().agreed.stop in (Stop.INTERRUPTED, Stop.FAILED):
            return
        values: dict[str, float] = {}
        for callback in trainer.callback_handler:
            for best in callback.best.values() if isinstance(callback, SaveBestCallback) else ():
                values |= {f"best_{best['metric']}": best["value"], f"best_{best['metric']}_epoch": best["epoch"]}
        self._log(*_moment(trainer, _RUN), values)

    def _log(self, epoch: int, step: int, order: int, values: dict[str, float]) -> None:
        point = Point(epoch, step, order, values)
        if not values or not self._services or self._journal.has(point.moment):
            return
        self._journal.add(point)
        for service in self._services:
            service.log(point)


def _moment(trainer: "LoopTrainer", order: int) -> tuple[int, int, int]:
    """Return the epoch, the number of updates and the order of a point of now."""
    run = trainer.current_run()
    return (run.epochs_done if run.epoch is None else run.epoch), run.num_updates, order


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON reads them back."""
    return json.loads(json.dumps(dict(options), default=str))


def _learning_rates(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the learning rate of the first group, and of each group that began with another one."""
    seen: list[tuple[Any, Any]] = []
    rates = {}
    for number, group in enumerate(groups):
        kind = (group.get("initial_lr", group["lr"]), group.get("lr_scale"))
        if kind not in seen and group["lr"] is not None:
            rates["lr" if number == 0 else f"lr_group_{number}"] = float(group["lr"])
            seen.append(kind)
    return rates

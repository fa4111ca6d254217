"""Saving: what goes into a state, and who may ask for one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from timm_accel.states.consensus import on_main_process
from timm_accel.states.folder import COMMON, STATES, plain, prune_states, rank_file, write_state
from timm_accel.states.running_mean import RunningMean
from timm_accel.training.surface import SurfaceTrainer

PACKAGES = ("timm_accel", "torch", "torchvision", "timm", "accelerate", "pytorch-accelerated")


class Stateful(Protocol):
    """Anything whose state can be taken and given back as tensors and plain values."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take it up again."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two updates.

    Args:
        epoch: The epoch, from 0.
        batch: Micro-batches of it that this process has trained on.
        stage: What comes next in it: ``train``, ``evaluate`` or ``end`` (schedules and callbacks).
        learning_rate: The rate at its start.
    """

    epoch: int = 0
    batch: int = 0
    stage: str = "train"
    learning_rate: float = 0.0


class SavingTrainer(SurfaceTrainer):
    """The part of `LoopTrainer` that writes states; see there."""

    keep_states: int | None = None
    _progress: Any = None  # Progress; None outside a training run
    _identity: Mapping[str, Any]
    _last_state: Path | None = None

    def components(self) -> dict[str, Stateful]:
        """Return what must survive a resume besides model, optimizer and scheduler. Mixins add theirs.

        The loss is among them when it has parameters or buffers.
        """
        loss = self.loss_func
        return {"loss_func": loss} if isinstance(loss, nn.Module) and loss.state_dict() else {}

    def request_save(self, *, milestone: bool = False, everywhere: bool = False) -> None:
        """Ask, on any process, to write a state at the next agreement.

        Args:
            milestone: Whether to keep the state for good, whatever ``keep_states`` says.
            everywhere: Whether every process asks at this same moment, so that none need be asked: the state is then
                written as soon as the update or the epoch is complete.

        Raises:
            ValueError: The trainer has no ``run_dir``.
        """
        if self.run_dir is None:
            raise ValueError("Expected run_dir to be given, since states are saved there, but got None. Pass run_dir.")
        if self._agreement is not None:
            self._agreement.ask_to_save(milestone, everywhere)

    def scheduler_state(self) -> dict[str, Any]:
        """Return what the scheduler cannot work out from the number of updates and epochs."""
        return self.scheduler.state_dict()

    def _save_state(self, milestone: bool, stopped: str | None) -> bool:
        """Write a state, and return whether that succeeded. Collective."""
        assert self._agreement is not None
        parts = self._agreement.gather(self._rank_part())
        try:
            self._last_state = on_main_process(self._accelerator, lambda: self._write(parts, milestone, stopped))
        except (OSError, ArithmeticError) as error:
            last = "none was written yet" if self._last_state is None else f"the last one is {str(self._last_state)!r}"
            self.print(
                f"Expected a state to be written to {str(self.run_dir)!r}, but it was not ({error}); {last}. "
                "Make room, or mend what is wrong; the next one is tried when it is due."
            )
            return False
        return True

    def _write(self, parts: list[dict[str, Any]], milestone: bool, stopped: str | None) -> Path:
        assert self.run_dir is not None
        assert self._progress is not None
        if not all(part["finite"] for part in parts):
            raise ArithmeticError("the loss is not finite, and older states would go for this one")
        files = {COMMON: self._common_part()} | {rank_file(rank): part for rank, part in enumerate(parts)}
        about = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {package: version(package) for package in PACKAGES},
            "milestone": milestone,
            "scheduler": type(self.scheduler).__name__,
            "stopped": stopped,
            "progress": asdict(self._progress),
            "num_updates": self.num_updates,
            **self._shape(),
            "run": self._identity,
        }
        name = f"epoch_{self._progress.epoch}_batch_{self._progress.batch}"
        state = write_state(self.run_dir / STATES, name, files, about)
        if self.keep_states is not None:
            prune_states(self.run_dir / STATES, self.keep_states)
        return state.folder

    def _begin_states(self) -> None:
        """Mark the run folder as one of a run that can be resumed, before anything else is written there."""
        assert self.run_dir is not None
        (self.run_dir / STATES).mkdir(exist_ok=True)

    def _shape(self) -> dict[str, Any]:
        """Return what positions and schedules are counted in."""
        dataset = self.train_dataset
        return {
            "num_processes": self._accelerator.num_processes,
            "batch_size": self.run_config.train_per_device_batch_size,
            "accumulation": self.run_config.gradient_accumulation_steps,
            "images": len(dataset) if hasattr(dataset, "__len__") else None,
            "num_epochs": self.run_config.num_epochs,
            "updates_per_epoch": self.updates_per_epoch,
            "max_num_train_steps": self.run_config.max_num_train_steps,
            "mixed_precision": self.run_config.mixed_precision,
        }

    def _common_part(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        history = self.run_history
        return {
            "model": plain(self.unwrapped_model.state_dict(), "the model's state"),
            "optimizer": plain(self.unwrapped_optimizer.state_dict(), "the optimizer's state"),
            "scaler": None if scaler is None else scaler.state_dict(),
            "history": {
                "epoch": history.current_epoch,
                "metrics": {
                    name: plain(list(history.get_metric_values(name)), f"the metric {name!r}")
                    for name in sorted(history.get_metric_names())
                },
            },
            **self._small_parts(),
            "components": {
                name: plain(part.state_dict(), f"components()[{name!r}]") for name, part in self.components().items()
            },
        }

    def _small_parts(self) -> dict[str, Any]:
        return {
            "scheduler": None if self.scheduler is None else plain(self.scheduler_state(), "the scheduler's state"),
            "callbacks": {name: plain(part.state_dict(), name) for name, part in self._stateful_callbacks().items()},
        }

    def _stateful_callbacks(self) -> dict[str, Stateful]:
        """Return the callbacks that have a state; asked on the class, since upstream's answer any name (0.1.61)."""
        return {
            type(callback).__qualname__: callback
            for callback in self.callback_handler
            if hasattr(type(callback), "state_dict") and hasattr(type(callback), "load_state_dict")
        }

    def _rank_part(self) -> dict[str, Any]:
        """Return what differs between processes: the running loss, and buffers, which DDP does not keep equal."""
        loss = self.running_loss if self._progress.batch else RunningMean(self.device)  # between epochs it says nothing
        part: dict[str, Any] = {"running_loss": loss.state_dict(), "finite": self.running_loss.finite(), "buffers": {}}
        if self._accelerator.num_processes > 1:
            for name, module in self._modules().items():
                kept = module.state_dict().keys()
                part["buffers"][name] = {key: value.cpu() for key, value in module.named_buffers() if key in kept}
        return part

    def _modules(self) -> dict[str, nn.Module]:
        modules = {name: part for name, part in self.components().items() if isinstance(part, nn.Module)}
        return {"model": self.unwrapped_model, **modules}

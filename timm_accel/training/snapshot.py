"""The content of a state: what a run saves and restores.

The shared part is equal on all ranks. The part of a rank holds what differs between ranks: the running loss, and
buffers, which DDP does not keep equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from timm_accel.callbacks.recorded_metrics import plain_value
from timm_accel.states.growing import Growing, GrowingParts, Key
from timm_accel.states.plain import plain
from timm_accel.states.running_mean import RunningMean
from timm_accel.states.saved_state import COMMON, SavedState, rank_file
from timm_accel.training.loaders import stream_of

if TYPE_CHECKING:
    from timm_accel.training.trainer import LoopTrainer
    from timm_accel.training.training_run import TrainingRun

_SCHEDULED = ("lr", "momentum", "betas")  # what torch's schedulers change in a parameter group


class Stateful(Protocol):
    """An object whose state can be saved and loaded as tensors and plain values."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Load a state."""


@dataclass(frozen=True)
class Progress:
    """The position of a run between two updates.

    Args:
        epoch: The epoch, from 0.
        batch: Micro-batches of it that this process has trained on.
        stage: What comes next in the epoch: ``train``, ``evaluate`` or ``end`` (schedules and callbacks).
        learning_rate: The learning rate at the start of the epoch.
    """

    epoch: int = 0
    batch: int = 0
    stage: str = "train"
    learning_rate: float = 0.0


def modules_of(trainer: LoopTrainer) -> dict[str, nn.Module]:
    """Return the model and every component that is a module, by name."""
    modules = {name: part for name, part in trainer.components().items() if isinstance(part, nn.Module)}
    return {"model": trainer.get_unwrapped_model(), **modules}


def stateful_callbacks(trainer: LoopTrainer) -> dict[str, Stateful]:
    """Return the callbacks that have a state; looks at the class, since upstream's answer to any name (0.1.61)."""
    return {
        type(callback).__qualname__: callback
        for callback in trainer.callback_handler
        if hasattr(type(callback), "state_dict") and hasattr(type(callback), "load_state_dict")
    }


def take_components(trainer: LoopTrainer) -> dict[str, Any]:
    """Return the state of every component."""
    return {name: plain(part.state_dict(), f"components()[{name!r}]") for name, part in trainer.components().items()}


def with_components(trainer: LoopTrainer, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what one of upstream's checkpoints holds beside its own parts: what was given, and the components."""
    return {**(given or {}), "components": take_components(trainer)}


def load_components(trainer: LoopTrainer, saved: dict[str, Any]) -> dict[str, Any]:
    """Load the components that one of upstream's checkpoints holds, and return the checkpoint."""
    for name, component in trainer.components().items():
        if name in saved.get("components", {}):
            component.load_state_dict(saved["components"][name])
    return saved


def take_shared(trainer: LoopTrainer, parts: GrowingParts) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """Return the part that all processes share, and what makes the content of each part of the lists that grow.

    Raises:
        TypeError: Something in it is neither a tensor nor a plain value.
    """
    scaler, scheduler = trainer._accelerator.scaler, trainer.scheduler
    callbacks = {name: part.state_dict() for name, part in stateful_callbacks(trainer).items()}
    constant, rest = parts.split(_growing_lists(trainer, callbacks), _take_value)
    shared = {
        "model": plain(trainer.get_unwrapped_model().state_dict(), "the model's state"),
        "optimizer": plain(trainer.current_run().unwrapped_optimizer.state_dict(), "the optimizer's state"),
        "scaler": None if scaler is None else scaler.state_dict(),
        "history": {"epoch": trainer.run_history.current_epoch, "metrics": {}},
        "scheduler": None if scheduler is None else plain(trainer.scheduler_state(), "the scheduler's state"),
        "callbacks": {name: plain(_constant(state), name) for name, state in callbacks.items()},
        "components": take_components(trainer),
    }
    _put(rest, shared)
    return shared, constant


def growing_lists(trainer: LoopTrainer) -> dict[Key, list[Any]]:
    """Return the lists of a run that only get longer: the metrics of its history, and those of callbacks."""
    return _growing_lists(trainer, {name: part.state_dict() for name, part in stateful_callbacks(trainer).items()})


def _growing_lists(trainer: LoopTrainer, callbacks: Mapping[str, Mapping[str, Any]]) -> dict[Key, list[Any]]:
    history = trainer.run_history
    names = sorted(history.get_metric_names())
    metrics: dict[Key, list[Any]] = {("history", "metrics", name): history.get_metric_values(name) for name in names}
    return metrics | {
        ("callbacks", callback, name): values
        for callback, state in callbacks.items()
        for name, values in _growing_of(state).items()
    }


def _growing_of(state: Any) -> dict[str, Growing]:
    items = state.items() if isinstance(state, Mapping) else ()
    return {name: value for name, value in items if isinstance(value, Growing)}


def _constant(state: Any) -> Any:
    grows = _growing_of(state)
    return {name: value for name, value in state.items() if name not in grows} if grows else state


def _put(lists: Mapping[Key, list[Any]], shared: dict[str, Any]) -> None:
    for (kind, owner, name), values in lists.items():
        shared[kind][owner][name] = values


def restore_shared(trainer: LoopTrainer, shared: Mapping[str, Any], same_length: bool) -> None:
    """Load the part that all processes share.

    Args:
        trainer: The trainer, with the run's scheduler.
        shared: What `load_common` returned.
        same_length: Whether the run is as long as when it was saved.

    Raises:
        ValueError: The trainer has other components than the state.
    """
    _check_components(trainer.components(), shared["components"])
    trainer.get_unwrapped_model().load_state_dict(shared["model"])
    _restore_optimizer(trainer, shared, same_length)
    if trainer._accelerator.scaler is not None and shared["scaler"] is not None:
        trainer._accelerator.scaler.load_state_dict(shared["scaler"])
    _restore_history(trainer.run_history, shared["history"])
    for name, callback in stateful_callbacks(trainer).items():
        if name in shared["callbacks"]:
            callback.load_state_dict(shared["callbacks"][name])
    for name, component in trainer.components().items():
        component.load_state_dict(shared["components"][name])


def take_rank(run: TrainingRun) -> dict[str, Any]:
    """Return the part of this process."""
    trainer = run.trainer
    loss = run.running_loss if run.progress.batch else RunningMean(trainer.device)  # it has no meaning between epochs
    part: dict[str, Any] = {"running_loss": loss.state_dict(), "finite": run.running_loss.finite(), "buffers": {}}
    means = run.training_means if run.progress.batch else {}
    part["training_means"] = {name: mean.state_dict() for name, mean in means.items()}
    if run.progress.batch and (stream := stream_of(run.train_dataloader)) is not None:
        part["stream"] = stream.epoch_state()
    if trainer._accelerator.num_processes > 1:
        for name, module in modules_of(trainer).items():
            kept = module.state_dict().keys()
            part["buffers"][name] = {key: value.cpu() for key, value in module.named_buffers() if key in kept}
    return part


def restore_rank(run: TrainingRun, state: SavedState) -> RunningMean:
    """Load the part of this rank and return its running loss; with another number of ranks, rank 0 gets all sums."""
    run.begin_training_means()
    trainer, accelerator = run.trainer, run.accelerator
    loss, modules = RunningMean(trainer.device), modules_of(trainer)
    saved = state.manifest["num_processes"]
    same = saved == accelerator.num_processes
    rank = accelerator.process_index
    for number in [rank] if same else range(saved) if rank == 0 else []:
        part = state.load(rank_file(number))
        loss.merge(part["running_loss"])
        for name in run.training_means.keys() & part.get("training_means", {}).keys():
            run.training_means[name].merge(part["training_means"][name])
        for name, buffers in part["buffers"].items() if same else ():
            modules[name].load_state_dict(buffers, strict=False)
        if same and "stream" in part and (stream := stream_of(run.train_dataloader)) is not None:
            stream.restore_epoch(part["stream"])
    return loss


def take(
    run: TrainingRun, ranks: list[dict[str, Any]], parts: GrowingParts
) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """Return the contents of a state's files, and what makes those that do not change from state to state.

    Args:
        run: The run.
        ranks: What `take_rank` returned on each process.
        parts: The parts of the lists that grow.
    """
    shared, constant = take_shared(run.trainer, parts)
    return {COMMON: shared} | {rank_file(rank): part for rank, part in enumerate(ranks)}, constant


def _take_value(value: Any) -> Any:
    """Return a recorded value as a state can hold it: arrays as lists, and other objects as text."""
    try:
        return plain(value, "a metric")
    except TypeError:
        value = plain_value(value)
    try:
        return plain(value, "a metric")
    except TypeError:
        return str(value)


def _restore_history(history: Any, saved: Mapping[str, Any]) -> None:
    history.reset()
    for name, values in saved["metrics"].items():
        for value in values:
            history.update_metric(name, value)
    history._set_epoch(saved["epoch"])


def _check_components(current_components: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    if missing := [name for name in current_components if name not in saved]:
        raise ValueError(
            f"Expected the state to hold {missing}, but got {sorted(saved)}. Use the same trainer and options."
        )
    if unknown := [name for name in saved if name not in current_components]:
        raise ValueError(
            f"Expected a trainer with {unknown}, since the state holds them, but got {sorted(current_components)}. "
            "Use the same trainer and options."
        )


def _restore_optimizer(trainer: LoopTrainer, shared: Mapping[str, Any], same_length: bool) -> None:
    scheduled = False
    if trainer.scheduler is not None and shared["scheduler"] is not None:
        scheduled = trainer.restore_scheduler(shared["scheduler"], same_length)
    groups = trainer.optimizer.param_groups
    options = [{name: group[name] for name in _SCHEDULED if name in group} for group in groups]
    trainer.current_run().unwrapped_optimizer.load_state_dict(shared["optimizer"])
    _restore_dtypes(trainer.current_run().unwrapped_optimizer, shared["optimizer"]["state"])
    if scheduled:
        for group, scheduled_options in zip(trainer.optimizer.param_groups, options, strict=True):
            group.update(scheduled_options)


def _restore_dtypes(optimizer: Any, saved: Mapping[int, Mapping[str, Any]]) -> None:
    """Give each state its saved dtype: torch's ``load_state_dict`` (2.14) turns it into that of its parameter."""
    states = getattr(optimizer, "_base_optimizer", optimizer).state  # timm's Lookahead has an inner optimizer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, kept in saved.items():
        for name, value in kept.items():
            current = states[parameters[number]].get(name)
            if isinstance(value, torch.Tensor) and isinstance(current, torch.Tensor) and current.dtype != value.dtype:
                states[parameters[number]][name] = value.to(current.device)

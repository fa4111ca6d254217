"""The learning-rate finder: a short sweep over rates on the real trainer, after which nothing has changed.

It is run by hand before training, and never chooses a rate for the user.
"""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn

from timm_accel.callbacks.defaults import MoveModulesToDeviceCallback
from timm_accel.training import LoopTrainer

SMOOTHING = 0.9
_OWN = ("num_epochs", "max_num_train_steps", "eval_dataset", "resume_from")


@dataclass(frozen=True)
class LRRangeTest:
    """The losses of a sweep, and three suggestions; none is right for every model, so look at the figure.

    Args:
        rates: The first group's rate at each update, ``(N,)``.
        losses: The loss before that update, ``(N,)``.
        smoothed: The losses' moving average, ``(N,)``.
        steepest: The rate at which the smoothed loss falls fastest per decade; None for a loss that never falls.
        minimum_tenth: A tenth of the rate with the smallest smoothed loss.
        valley: The middle, in decades, of the longest stretch of falling smoothed losses; None as above.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float | None
    minimum_tenth: float
    valley: float | None


def find_lr(
    trainer: LoopTrainer,
    train_dataset: Any,
    *,
    min_lr: float = 1e-6,
    max_lr: float = 1.0,
    num_updates: int = 100,
    stop_at: float = 4.0,
    **train_options: Any,
) -> LRRangeTest:
    """Train with rates that rise exponentially, note the losses, and put everything back.

    Model, optimizer and all that it steps, components, average, random states, history and run folder are then as they
    were, bit for bit. The losses are those of the trainer: its batches, transforms, Mixup, clipping, accumulation and
    precision. Groups keep the ratios of their rates. On several processes call it on all of them.

    Args:
        trainer: The trainer, before or between runs.
        train_dataset: As for ``trainer.train``.
        min_lr: The first rate of the first group.
        max_lr: The last.
        num_updates: Updates of the sweep.
        stop_at: The sweep ends once the smoothed loss is this many times its smallest value.
        **train_options: Options of ``trainer.train``, such as ``per_device_batch_size``.

    Raises:
        ValueError: A number is out of range, the optimizer finds its own rate, or an option is of runs alone.
        RuntimeError: A run is going on, or the loss is not finite after less than three updates.

    Source: Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186.
    """
    _check(trainer, min_lr, max_lr, num_updates, stop_at)
    for name in _OWN:
        if name in train_options:
            raise ValueError(f"Expected train_options without {name}, since a sweep has none, but got one. Drop it.")
    sweep = _stand_in(trainer)
    sweep.sweep_rates = np.geomspace(min_lr, max_lr, num_updates).tolist()
    sweep.sweep_stop_at = stop_at
    with _put_back(trainer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ema_decay=")  # the run is longer
        sweep.train(train_dataset, num_updates, max_num_train_steps=num_updates, **train_options)
        losses = sweep.mean_losses()
    return _suggest(np.array(sweep.sweep_rates[: len(losses)]), losses)


class _Sweep(LoopTrainer):
    """What a sweep does otherwise; mixed into the class of the trainer."""

    sweep_rates: list[float]
    sweep_stop_at: float

    def training_run_start(self) -> None:
        super().training_run_start()
        rates = _rates(self)
        self.sweep_ratios = [rate / rates[0] for rate in rates]
        self.sweep_losses: list[torch.Tensor] = []
        self.sweep_group: list[torch.Tensor] = []
        self.sweep_average, self.sweep_smallest = _Average(), float("inf")

    def create_scheduler(self) -> None:
        """Return none: the sweep sets the rates."""

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        output = super().calculate_train_batch_loss(batch)
        self.sweep_group.append(output["loss"].detach().float())
        return output

    def optimizer_step(self) -> None:
        for group, ratio in zip(self.optimizer.param_groups, self.sweep_ratios, strict=True):
            group["lr"] = self.sweep_rates[len(self.sweep_losses)] * ratio
        super().optimizer_step()
        self.sweep_loss, self.sweep_group = torch.stack(self.sweep_group).mean(), []

    def after_update(self) -> None:
        super().after_update()
        self.sweep_loss = self.current_run().accelerator.reduce(
            self.sweep_loss, reduction="mean"
        )  # all end at the same update
        self.sweep_losses.append(self.sweep_loss)
        smoothed = self.sweep_average.add(self.sweep_loss.item())
        self.sweep_smallest = min(self.sweep_smallest, smoothed)
        if not smoothed <= self.sweep_stop_at * self.sweep_smallest:
            self.request_stop("The loss has diverged: the sweep is over.")

    def mean_losses(self) -> np.ndarray:
        """Return the losses, means over all processes, up to the first that is not finite."""
        losses = torch.stack(self.sweep_losses).cpu().numpy()
        finite = np.isfinite(losses)
        return losses.astype(float)[: len(losses) if finite.all() else int(finite.argmin())]


class _Average:
    """A moving average that is not drawn to zero at its start."""

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, value: float) -> float:
        self.total = SMOOTHING * self.total + (1 - SMOOTHING) * value
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        return self.total / self.weight


def _check(trainer: LoopTrainer, min_lr: float, max_lr: float, num_updates: int, stop_at: float) -> None:
    if trainer.current_run().epoch is not None:
        raise RuntimeError("Expected find_lr before or between runs, but got it within one. Call it before train().")
    if not 0 < min_lr < max_lr or not isfinite(max_lr):
        raise ValueError(
            f"Expected min_lr to be positive and below max_lr, but got {min_lr!r} and {max_lr!r}. The defaults are "
            "1e-6 and 1.0."
        )
    if not (isinstance(num_updates, int) and num_updates >= 10):
        raise ValueError(f"Expected num_updates to be at least 10, but got {num_updates!r}. The default is 100.")
    if not stop_at > 1:
        raise ValueError(f"Expected stop_at to be above 1, but got {stop_at!r}. The default is 4.")
    rates = _rates(trainer)
    if not all(rate is not None and rate > 0 for rate in rates):
        raise ValueError(
            f"Expected an optimizer with positive rates, but got {rates}. Pass lr to the optimizer; its groups keep "
            "their ratios."
        )


def _rates(trainer: LoopTrainer) -> list[float]:
    """Return the groups' rates, before a schedule if one has moved them."""
    return [group.get("initial_lr", group["lr"]) for group in trainer.optimizer.param_groups]


def _stand_in(trainer: LoopTrainer) -> Any:
    """Return a copy of the trainer that sweeps: it shares model and optimizer, but no history, callbacks or folder."""
    sweep: Any = copy(trainer)
    sweep.__class__ = type(f"{type(trainer).__name__}Sweep", (_Sweep, type(trainer)), {})
    sweep.run_history = type(trainer.run_history)()
    sweep.callback_handler = type(trainer.callback_handler)([MoveModulesToDeviceCallback])
    sweep.run_dir = sweep.keep_states = None
    sweep.sync_every_n_updates = 1
    return sweep


@contextmanager
def _put_back(trainer: LoopTrainer) -> Iterator[None]:
    """Put back modules, components, optimizer and random states, however the sweep ends."""
    parts = [part for part in trainer.components().values() if not isinstance(part, nn.Module)]
    kept_parts = [(part, deepcopy(part.state_dict())) for part in parts]
    kept_modules = [_Kept(module) for module in _modules(trainer)]
    kept_optimizer = _KeptOptimizer(trainer.unwrapped_optimizer)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            for part, state in kept_parts:
                part.load_state_dict(state)
            for kept in reversed(kept_modules):  # of shared parameters the first keeps the gradients
                kept.put_back()
            kept_optimizer.put_back()
            random.setstate(python)
            np.random.set_state(numpy)


def _modules(trainer: LoopTrainer) -> list[nn.Module]:
    """Return the modules that a sweep may change; the last one holds what the optimizer steps beside the others."""
    candidates = [trainer.unwrapped_model, trainer.loss_func, *trainer.components().values()]
    modules = [*dict.fromkeys(each for each in candidates if isinstance(each, nn.Module))]
    owned = {id(parameter) for module in modules for parameter in module.parameters()}
    stepped = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    return [*modules, nn.ParameterList(parameter for parameter in stepped if id(parameter) not in owned)]


class _Kept:
    """What training changes in a module: tensors, gradients, modes, and the attributes that accelerate sets."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.attributes = module, dict(vars(module))
        self.modes = {each: each.training for each in module.modules()}
        self.tensors = {name: each.detach().clone() for name, each in self._named_tensors().items()}
        self.gradients = {each: each.grad for each in module.parameters()}
        self.extras = {each: deepcopy(vars(each)) for each in module.parameters()}  # Adahessian keeps traces there
        for parameter in module.parameters():
            parameter.grad = None  # the sweep would add to it in place

    def _named_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    @torch.no_grad()
    def put_back(self) -> None:
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for module, mode in self.modes.items():
            module.training = mode
        for name, tensor in self._named_tensors().items():  # on another device than before, maybe
            tensor.copy_(self.tensors[name])
        for parameter, gradient in self.gradients.items():
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
            vars(parameter).clear()
            vars(parameter).update(self.extras[parameter])


class _KeptOptimizer:
    """An optimizer's state, groups and random generators; ``load_state_dict`` would cast and keep too little."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead
        self.state = {parameter: deepcopy(state) for parameter, state in self.optimizer.state.items()}
        self.groups = [{**group, "params": list(group["params"])} for group in self.optimizer.param_groups]
        self.generators = {
            name: value.clone_state() if isinstance(value, torch.Generator) else deepcopy(value)
            for name, value in vars(self.optimizer).items()
            if isinstance(value, torch.Generator | random.Random)
        }

    def put_back(self) -> None:
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)
        for group, kept in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.clear()
            group.update(kept)
        vars(self.optimizer).update(self.generators)


def _suggest(rates: np.ndarray, losses: np.ndarray) -> LRRangeTest:
    if len(losses) < 3:
        raise RuntimeError(
            f"Expected finite losses, but got {len(losses)} of them before the first that is not. Lower min_lr, or "
            "look for broken data."
        )
    average = _Average()
    smoothed = np.array([average.add(loss) for loss in losses])
    slopes = np.gradient(smoothed, np.log10(rates))
    valley = _longest_fall(smoothed)
    falls = bool(slopes.min() < 0)
    return LRRangeTest(
        rates=rates,
        losses=losses,
        smoothed=smoothed,
        steepest=float(rates[slopes.argmin()]) if falls else None,
        minimum_tenth=float(rates[smoothed.argmin()] / 10),
        valley=None if valley is None else float(np.sqrt(rates[valley[0]] * rates[valley[1]])),
    )


def _longest_fall(values: np.ndarray) -> tuple[int, int] | None:
    """Return first and last position of the longest falling subsequence; None where nothing falls."""
    lengths, starts = [1] * len(values), list(range(len(values)))
    for end in range(len(values)):
        for before in range(end):
            if values[before] > values[end] and lengths[before] + 1 > lengths[end]:
                lengths[end], starts[end] = lengths[before] + 1, starts[before]
    end = int(np.argmax(lengths))
    return (starts[end], end) if lengths[end] > 1 else None

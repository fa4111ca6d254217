"""Run an LR range test on the real trainer, and restore everything afterwards.

Call it by hand before training; it never sets the learning rate of a run.
"""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn

from timm_accel.training import LoopTrainer
from timm_accel.training.preparation import require_optimizer, trial_trainer

__all__ = ["LRRangeTest", "find_lr"]

SMOOTHING = 0.9
_SET_BY_FIND_LR = ("num_epochs", "max_num_train_steps", "eval_dataset", "resume_from")


@dataclass(frozen=True)
class LRRangeTest:
    """The losses of an LR range test, and three suggestions; none fits every model, so look at the figure.

    Args:
        learning_rates: The first group's learning rate at each update, ``(N,)``.
        losses: The loss before that update, ``(N,)``.
        smoothed: The moving average of the losses, ``(N,)``.
        steepest: The learning rate where the smoothed loss falls fastest per decade; None if it never falls.
        minimum_tenth: A tenth of the learning rate with the smallest smoothed loss.
        valley: The middle, in decades, of the longest stretch of falling smoothed losses; None if they never fall.
    """

    learning_rates: np.ndarray
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
    """Train with exponentially rising learning rates, record the losses, and restore everything.

    The model, the optimizer and everything it steps, components, EMA weights, random states, history and run folder are
    restored bit for bit. The losses are those of the trainer, with its batches, transforms, Mixup, clipping,
    accumulation and precision. Groups keep the ratios of their learning rates. In distributed training call it on all
    ranks.

    Args:
        trainer: The trainer, before or between runs.
        train_dataset: As for ``trainer.train``.
        min_lr: The first learning rate of the first group.
        max_lr: The last learning rate of the first group.
        num_updates: Updates of the test.
        stop_at: The test ends once the smoothed loss is this many times its smallest value.
        **train_options: Options of ``trainer.train``, such as ``per_device_batch_size``.

    Raises:
        ValueError: A number is out of range, the optimizer has no learning rate to set, or an option is only for runs.
        RuntimeError: A run is in progress, or the loss is not finite after fewer than three updates.

    Source: Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186.
    """
    _check(trainer, min_lr, max_lr, num_updates, stop_at)
    for name in _SET_BY_FIND_LR:
        if name in train_options:
            raise ValueError(
                f"Expected train_options without {name}, since an LR range test has none, but got one. Drop it."
            )
    tester = _range_test_trainer(trainer)
    tester.range_test_lrs = np.geomspace(min_lr, max_lr, num_updates).tolist()
    tester.range_test_stop_at = stop_at
    with _restoring(trainer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ema_decay=")  # the run is longer
        tester.train(train_dataset, num_updates, max_num_train_steps=num_updates, **train_options)
        losses = tester.mean_losses()
    return _suggest(np.array(tester.range_test_lrs[: len(losses)]), losses)


class _RangeTestTrainer(LoopTrainer):
    """Override the hooks that an LR range test needs; mixed into the class of the trainer."""

    range_test_lrs: list[float]
    range_test_stop_at: float

    def training_run_start(self) -> None:
        super().training_run_start()
        lrs = _learning_rates(self)
        self.range_test_ratios = [lr / lrs[0] for lr in lrs]
        self.range_test_losses: list[torch.Tensor] = []
        self.range_test_micro_losses: list[torch.Tensor] = []
        self.range_test_smoothing, self.range_test_minimum = _MovingAverage(), float("inf")

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        if not self.range_test_losses:  # what is refused was refused before
            self.print(f"LR range test of {len(self.range_test_lrs)} updates …")

    def create_scheduler(self) -> None:
        """Return None, since `optimizer_step` sets the learning rates."""

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        output = super().calculate_train_batch_loss(batch)
        self.range_test_micro_losses.append(output["loss"].detach().float())
        return output

    def optimizer_step(self) -> None:
        for group, ratio in zip(self.optimizer.param_groups, self.range_test_ratios, strict=True):
            group["lr"] = self.range_test_lrs[len(self.range_test_losses)] * ratio
        super().optimizer_step()
        self.range_test_loss, self.range_test_micro_losses = torch.stack(self.range_test_micro_losses).mean(), []

    def after_update(self) -> None:
        super().after_update()
        self.range_test_loss = self.current_run().accelerator.reduce(
            self.range_test_loss, reduction="mean"
        )  # all end at the same update
        self.range_test_losses.append(self.range_test_loss)
        smoothed = self.range_test_smoothing.add(self.range_test_loss.item())
        self.range_test_minimum = min(self.range_test_minimum, smoothed)
        if not smoothed <= self.range_test_stop_at * self.range_test_minimum:
            lr = self.range_test_lrs[len(self.range_test_losses) - 1]
            self.request_stop(
                f"The LR range test ends at a learning rate of {lr:.1e}, where the loss rises, as it should. If the "
                "loss has not fallen before, start with a smaller learning rate."
            )

    def mean_losses(self) -> np.ndarray:
        """Return the losses, as means over all ranks, up to the first that is not finite."""
        losses = torch.stack(self.range_test_losses).cpu().numpy()
        finite = np.isfinite(losses)
        return losses.astype(float)[: len(losses) if finite.all() else int(finite.argmin())]


class _MovingAverage:
    """An exponential moving average without bias towards zero at its start."""

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
    require_optimizer(trainer.optimizer)
    lrs = _learning_rates(trainer)
    if not (lrs[0] and all(lr is not None and lr >= 0 for lr in lrs)):
        raise ValueError(
            f"Expected an optimizer whose first group has a positive learning rate, and none a negative one, but got "
            f"{lrs}. Pass lr to the optimizer; its groups keep their ratios."
        )


def _learning_rates(trainer: LoopTrainer) -> list[float]:
    """Return the groups' initial learning rates, before any schedule changed them."""
    return [group.get("initial_lr", group["lr"]) for group in trainer.optimizer.param_groups]


def _range_test_trainer(trainer: LoopTrainer) -> Any:
    """Return a copy of the trainer for the test: it shares only model, optimizer and options."""
    tester = trial_trainer(trainer, _RangeTestTrainer, "RangeTest")
    tester.sync_every_n_updates = 1
    tester.ema_decay = getattr(tester, "ema_decay", None) or 0.0  # None would report what it chose for the test
    return tester


@contextmanager
def _restoring(trainer: LoopTrainer) -> Iterator[None]:
    """Restore modules, components, optimizer and random states, also after an exception."""
    parts = [part for part in trainer.components().values() if not isinstance(part, nn.Module)]
    part_states = [(part, deepcopy(part.state_dict())) for part in parts]
    module_snapshots = [_ModuleSnapshot(module) for module in _modules(trainer)]
    optimizer_snapshot = _OptimizerSnapshot(trainer.unwrapped_optimizer)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            for part, state in part_states:
                part.load_state_dict(state)
            for snapshot in reversed(module_snapshots):  # the first snapshot has the gradients of shared parameters
                snapshot.restore()
            optimizer_snapshot.restore()
            random.setstate(python)
            np.random.set_state(numpy)


def _modules(trainer: LoopTrainer) -> list[nn.Module]:
    """Return the modules that training may change; the last one holds further parameters of the optimizer."""
    candidates = [trainer.unwrapped_model, trainer.loss_func, *trainer.components().values()]
    modules = [*dict.fromkeys(each for each in candidates if isinstance(each, nn.Module))]
    owned = {id(parameter) for module in modules for parameter in module.parameters()}
    stepped = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    return [*modules, nn.ParameterList(parameter for parameter in stepped if id(parameter) not in owned)]


class _ModuleSnapshot:
    """A copy of what training changes in a module: tensors, gradients, modes, and attributes from accelerate."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.attributes = module, dict(vars(module))
        self.modes = {each: each.training for each in module.modules()}
        self.tensors = {name: each.detach().clone() for name, each in self._named_tensors().items()}
        self.gradients = {each: each.grad for each in module.parameters()}
        self.extras = {each: deepcopy(vars(each)) for each in module.parameters()}  # Adahessian stores its traces there
        for parameter in module.parameters():
            parameter.grad = None  # training would add to it in place

    def _named_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    @torch.no_grad()
    def restore(self) -> None:
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for module, mode in self.modes.items():
            module.training = mode
        for name, tensor in self._named_tensors().items():  # the device may have changed
            tensor.copy_(self.tensors[name])
        for parameter, gradient in self.gradients.items():
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
            vars(parameter).clear()
            vars(parameter).update(self.extras[parameter])


class _OptimizerSnapshot:
    """A copy of an optimizer's state, groups and random generators; ``load_state_dict`` casts and omits some."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead
        self.state = {parameter: deepcopy(state) for parameter, state in self.optimizer.state.items()}
        self.groups = [{**group, "params": list(group["params"])} for group in self.optimizer.param_groups]
        self.generators = {
            name: value.clone_state() if isinstance(value, torch.Generator) else deepcopy(value)
            for name, value in vars(self.optimizer).items()
            if isinstance(value, torch.Generator | random.Random)
        }

    def restore(self) -> None:
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)
        for group, saved in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.clear()
            group.update(saved)
        vars(self.optimizer).update(self.generators)


def _suggest(lrs: np.ndarray, losses: np.ndarray) -> LRRangeTest:
    if len(losses) < 3:
        raise RuntimeError(
            f"Expected finite losses, but got {len(losses)} of them before the first that is not. Lower min_lr, or "
            "look for broken data."
        )
    moving_average = _MovingAverage()
    smoothed = np.array([moving_average.add(loss) for loss in losses])
    slopes = np.gradient(smoothed, np.log10(lrs))
    valley = _longest_fall(smoothed)
    falls = bool(slopes.min() < 0)
    return LRRangeTest(
        learning_rates=lrs,
        losses=losses,
        smoothed=smoothed,
        steepest=float(lrs[slopes.argmin()]) if falls else None,
        minimum_tenth=float(lrs[smoothed.argmin()] / 10),
        valley=None if valley is None else float(np.sqrt(lrs[valley[0]] * lrs[valley[1]])),
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

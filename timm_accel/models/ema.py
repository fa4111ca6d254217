"""EMA weights: the choice of their decay, and their update, in which each tensor moves once whatever its names."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

Holders = list[tuple[dict[str, Any], str, Any]]
"""Dictionaries of modules, each with a key and the value that it had."""
MAX_EMA_DECAY = 0.9998
"""timm's default decay, the highest that is chosen."""


def choose_ema_decay(total: int, every: int = 1) -> float:
    """Return the highest decay, at most `MAX_EMA_DECAY`, whose averaging window is at most a fifth of the run.

    The window is ``every / (1 - decay)`` updates: 0.95 for 100 updates, 0.995 for 1,000, and 0.9998 from 25,000 on.

    Args:
        total: Optimizer updates of the run.
        every: Optimizer updates between two updates of the EMA weights.
    """
    return max(0.0, min(MAX_EMA_DECAY, 1 - 5 * every / total))


class EmaUpdate:
    """The update of an EMA model, over pairs of tensors that are found once and again when one was exchanged.

    timm's ``ModelEmaV3.update`` (1.0.31) builds two state dicts for each update and moves a tensor once for each of its
    names: three layers with one weight keep 0.9 ** 3 of it instead of 0.9. Here each tensor moves once. Otherwise the
    tensors, their order and the arithmetic are timm's.

    Values are copied where there is nothing to average: tensors that are not floating point; and in buffers each value
    that the model has infinite or NaN, that the EMA model has infinite, or that is equal in both. Parameters that
    `fault` finds not to be finite are treated as buffers.

    Args:
        ema_model: timm's EMA model.
        model: The model that it follows, with the same names.

    Raises:
        ValueError: The tensors of the two differ in names or shapes; also when updated.
    """

    @torch.no_grad()
    def __init__(self, ema_model: ModelEmaV3, model: nn.Module) -> None:
        self.ema_model, self.model = ema_model, model
        self._guarded_names: set[str] = set()
        self._pair()
        for pair in self._not_finite():  # such as buffers that the first batch fills
            self._guarded_names.add(pair.name)
            pair.ema.copy_(torch.where(pair.ema.isfinite(), pair.ema, pair.model.to(pair.ema.device)))
        self._pair()

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Move the EMA weights towards those of the model. Reads nothing back to the host.

        Args:
            step: The number of optimizer updates, on which the decay depends.
        """
        if self._was_exchanged():
            self._pair()
        ema_model, weight = self.ema_model, 1.0 - self.ema_model.get_decay(step)
        before = _flat(self._guarded)
        if ema_model.foreach:
            ema_model._foreach_lerp_(self._averaged, self._followed, weight=weight)
        else:
            for ema_tensor, tensor in zip(self._averaged, self._followed, strict=True):
                ema_model._lerp_(ema_tensor, tensor.to(ema_tensor.device), weight=weight)
        if self._copied:
            torch._foreach_copy_(self._copied, self._sources)
        if before is not None:
            self._copy_exceptions(before)

    def _copy_exceptions(self, before: torch.Tensor) -> None:
        """Copy the values that cannot be averaged; one tensor of all of them saves launches."""
        after, model = _flat(self._guarded), _flat(self._guards)
        assert after is not None
        assert model is not None
        model = model.to(after.device)
        is_averaged = model.isfinite() & ~before.isinf() & (before != model)
        parts = torch.where(is_averaged, after, model).split([each.numel() for each in self._guarded])
        shaped = [
            part if tensor.ndim == 1 else part.view(tensor.shape)
            for tensor, part in zip(self._guarded, parts, strict=True)
        ]
        torch._foreach_copy_(self._guarded, shaped)

    @torch.no_grad()
    def suspicion(self) -> torch.Tensor:
        """Return numbers on the device that are all finite unless `fault` may find something or values exceed 1e19."""
        guarded, guards = _flat(self._guarded), _flat(self._guards)
        suspects = [pair.ema for pair in self._pairs if not self._is_guarded(pair)]
        if guarded is not None and guards is not None:
            suspects.append(torch.where(guards.to(guarded.device).isfinite(), guarded, 0))
        return _norms(suspects) if suspects else torch.zeros(0)

    @torch.no_grad()
    def fault(self, *, model_moved: bool = False) -> str | None:
        """Return the name of a tensor that is not finite where that of the model is, or None. Waits for the device.

        Args:
            model_moved: Whether the model was trained since the last update. A buffer that it had infinite then does
                not count.
        """
        if self._was_exchanged():
            self._pair()
        known = len(self._guarded_names)
        for pair in self._not_finite():
            tensor = pair.model.to(pair.ema.device)
            excused = model_moved and self._is_guarded(pair)
            wrong = tensor.isfinite() & (pair.ema.isnan() if excused else ~pair.ema.isfinite())
            if wrong.any():
                return pair.name
            self._guarded_names.add(pair.name)
            pair.ema.copy_(torch.where(pair.ema.isnan(), tensor, pair.ema))
        if len(self._guarded_names) > known:
            self._pair()
        return None

    def _not_finite(self) -> list["_Pair"]:
        """Return the pairs whose EMA tensor has a value that is not finite."""
        if not self._averaged:
            return []
        finite = _norms(self._averaged).isfinite().tolist()
        suspects = [pair for pair, is_finite in zip(self._pairs, finite, strict=True) if not is_finite]
        return [pair for pair in suspects if not pair.ema.isfinite().all()]

    def _is_guarded(self, pair: "_Pair") -> bool:
        return not isinstance(pair.ema, nn.Parameter) or pair.name in self._guarded_names

    def _pair(self) -> None:
        """Find the pairs of tensors, each EMA tensor under the first of its names."""
        ours, theirs = dict(_tensors(self.ema_model.module)), dict(_tensors(self.model))
        _check_alike(ours, theirs)
        self._holders = [*_holders(self.ema_model.module), *_holders(self.model)]
        first_names: dict[tuple[Any, ...], str] = {}
        for name, tensor in ours.items():
            first_names.setdefault(memory_of(tensor), name)
        pairs = [_Pair(name, ours[name], theirs[name]) for name in first_names.values() if ours[name].numel()]
        pairs = [pair for pair in pairs if memory_of(pair.ema) != memory_of(pair.model)]
        self._pairs = [pair for pair in pairs if pair.ema.is_floating_point()]
        self._averaged, self._followed = [pair.ema for pair in self._pairs], [pair.model for pair in self._pairs]
        others = [pair for pair in pairs if not pair.ema.is_floating_point()]
        self._copied, self._sources = [pair.ema for pair in others], [pair.model for pair in others]
        guarded = [pair for pair in self._pairs if self._is_guarded(pair)]
        self._guarded, self._guards = [pair.ema for pair in guarded], [pair.model for pair in guarded]

    def _was_exchanged(self) -> bool:
        """Whether a module has another tensor or child than when the pairs were found."""
        try:
            for holder, key, value in self._holders:
                if holder[key] is not value:
                    return True
        except KeyError:
            return True
        return False


class _Pair(NamedTuple):
    name: str
    ema: torch.Tensor
    model: torch.Tensor


def share_frozen(ema_model: ModelEmaV3, model: nn.Module, optimizer: Optimizer) -> None:
    """Let an EMA model use the memory of the model's frozen parameters, which no update moves.

    Args:
        ema_model: The EMA model; parameters on another device than the model's keep their memory.
        model: The model that it follows.
        optimizer: What it optimizes does not count as frozen, since it may be thawed later.
    """
    optimized = {id(each) for group in optimizer.param_groups for each in group["params"]}
    for ours, theirs in zip(ema_model.module.parameters(), model.parameters(), strict=True):
        if not theirs.requires_grad and id(theirs) not in optimized and ours.device == theirs.device:
            ours.data = theirs.data


def unshare_frozen(ema_model: ModelEmaV3, model: nn.Module) -> None:
    """Give an EMA model memory for all of its parameters again, so that it stays what it is when the model changes.

    Args:
        ema_model: The EMA model.
        model: The model that it followed.
    """
    for ours, theirs in zip(ema_model.module.parameters(), model.parameters(), strict=True):
        if memory_of(ours) == memory_of(theirs):
            ours.data = ours.data.clone()


def memory_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common if and only if they are the same values in the same memory."""
    if not tensor.numel():
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a state dict with their names: not copies of them, and those of a shared module once."""
    for prefix, each in module.named_modules():
        for name, tensor in [*each._parameters.items(), *each._buffers.items()]:
            if tensor is not None and name not in each._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, tensor


def _holders(module: nn.Module) -> Holders:
    """Return every place in a module and its children that holds a tensor or a child."""
    dictionaries = [part for each in module.modules() for part in (each._parameters, each._buffers, each._modules)]
    return [(part, key, value) for part in dictionaries for key, value in part.items()]


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """Return all values in one new tensor, or None of no tensors."""
    return torch.cat([each if each.ndim == 1 else each.reshape(-1) for each in tensors]) if tensors else None


def _norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the norm of each tensor, finite only if all values are, and infinite too where their squares overflow.

    On a CPU the largest absolute values take ten times as long (torch 2.14).
    """
    return torch.stack(torch._foreach_norm(tensors))


def _check_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name in [*ours, *theirs]:
        shapes = [tuple(each[name].shape) if name in each else None for each in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Expected the model to keep the tensors that it had before training, since the EMA weights follow "
                f"them, but got {name!r} of shape {shapes[0]} in the model and {shapes[1]} in the EMA model. Change "
                "the model before training."
            )

"""How many bytes the states and the best weights of a run will take, from its tensors before the first update."""

from collections import defaultdict
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_OF_ENTRY = 300  # bytes around a tensor in a file of torch


def bytes_of_weights(trainer: "LoopTrainer") -> int:
    """Return the bytes of one set of best weights."""
    return _bytes(trainer.current_run().unwrapped_model.state_dict(), 0)


def bytes_of_state(trainer: "LoopTrainer") -> int | None:
    """Return the bytes of one state: model, optimizer, components, and each rank's buffers.

    None where the optimizer does not run without values.
    """
    run = trainer.current_run()
    model, optimizer = run.unwrapped_model, run.unwrapped_optimizer
    try:
        of_optimizer = _bytes(optimizer.state_dict()["state"] or _state_of_trial(optimizer), _OF_ENTRY)
    except Exception:  # it reads values, which a trial has not
        return None
    parts = [model.state_dict(), *(part.state_dict() for part in trainer.components().values())]
    processes = run.accelerator.num_processes
    buffers = _bytes(dict(model.named_buffers()), _OF_ENTRY) * processes if processes > 1 else 0
    return of_optimizer + buffers + _bytes(parts, _OF_ENTRY)


def _state_of_trial(optimizer: Any) -> Any:
    """Return the state that the optimizer will have, without values: that of a copy on the meta device."""
    trial = _trial_of(optimizer)
    for group in trial.param_groups:
        for each in group["params"]:
            each.grad = torch.empty_like(each) if each.requires_grad else None
    with torch.random.fork_rng(devices=()):
        for _ in range(trial.param_groups[0].get("lookahead_k", 1)):
            trial.step()
    return trial.state_dict()["state"]


def _trial_of(optimizer: Any) -> Any:
    """Return a copy of an optimizer over parameters on the meta device, without state; torch's deepcopy loses parts."""
    if any(isinstance(value, torch.Generator | Random) for value in vars(optimizer).values()):
        raise TypeError("The trial would draw the random numbers of the run.")
    trial = object.__new__(type(optimizer))
    vars(trial).update({name: value for name, value in vars(optimizer).items() if name != "step"})  # a scheduler's
    if (base := getattr(optimizer, "_base_optimizer", None)) is not None:  # timm's Lookahead
        trial._base_optimizer = _trial_of(base)
        trial.param_groups = trial._base_optimizer.param_groups
        return trial
    off = {"fused": False, "capturable": False}
    trial.state = defaultdict(dict)
    trial.param_groups = [
        {**group, **{name: value for name, value in off.items() if name in group}, "params": _on_meta(group["params"])}
        for group in optimizer.param_groups
    ]
    return trial


def _on_meta(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad) for each in parameters]


def _bytes(value: Any, of_entry: int, seen: set[int] | None = None) -> int:
    """Return the bytes of all tensors in a value; one that comes twice counts once."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        key = id(value) if value.is_meta else (value.data_ptr() or id(value))
        if key in seen:
            return 0
        seen.add(key)
        return value.numel() * value.element_size() + of_entry
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(_bytes(each, of_entry, seen) for each in value)

"""How many bytes the states and the best weights of a run will take, from its tensors before the first update."""

from collections.abc import Mapping
from copy import deepcopy
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
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    copies = {id(each): torch.nn.Parameter(torch.empty_like(each, device="meta")) for each in parameters}
    trial = deepcopy(optimizer, dict(copies))
    for each in parameters:
        copies[id(each)].grad = torch.empty_like(each, device="meta") if each.requires_grad else None
    for group in trial.param_groups:
        group.update({name: False for name in ("fused", "capturable") if name in group})
    with torch.random.fork_rng(devices=()):
        for _ in range(getattr(optimizer, "param_groups", [{}])[0].get("lookahead_k", 1)):
            trial.step()
    return trial.state_dict()["state"]


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

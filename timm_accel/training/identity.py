"""What a run is: what a resumed run must have in common with its state."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from timm_accel.data.classes import class_names


def describe_run(
    model: nn.Module, optimizer: Optimizer, train_dataset: Any, seed: int, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """Return plain values that are equal when, and only when, one run may go on from the other's state."""
    base = getattr(optimizer, "_base_optimizer", None)  # timm's Lookahead
    kinds = [type(part).__name__ for part in (optimizer, base) if part is not None]
    scaled = {"lr"} if recipe.get("base_batch_size") else set()  # the rate follows the global batch
    defaults = {name: value for name, value in optimizer.defaults.items() if name not in scaled and _is_plain(value)}
    tensors = {name: value for name, value in model.state_dict().items() if hasattr(value, "shape")}
    described = {
        "model": (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "classes": class_names(train_dataset),
        "optimizer": {"kind": kinds, **defaults, "groups": [_about_group(group) for group in optimizer.param_groups]},
        "seed": seed,
        "recipe": dict(recipe),
    }
    return json.loads(json.dumps(described, default=str))


def _short(value: Any, most: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _about_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return what no schedule changes."""
    kept = {name: group[name] for name in ("weight_decay", "lr_scale") if name in group and _is_plain(group[name])}
    return {"parameters": len(group["params"])} | kept


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def differences(saved: Any, present: Any, name: str = "", most: int = 5) -> list[str]:
    """Return ``"recipe.lr (0.1 in the state, 0.2 now)"`` for each field that differs, `most` of them at the most."""
    found = []
    if isinstance(saved, dict) and isinstance(present, dict):
        for key in dict.fromkeys([*saved, *present]):
            found += differences(saved.get(key), present.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(saved, list) and isinstance(present, list) and len(saved) == len(present) and saved != present:
        for number, pair in enumerate(zip(saved, present, strict=True)):
            found += differences(*pair, f"{name}[{number}]")
    elif saved != present:
        found = [f"{name} ({_short(saved)} in the state, {_short(present)} now)"]
    return found if len(found) <= most else [*found[: most - 1], f"{len(found) - most + 1} more"]

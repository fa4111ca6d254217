"""The option `fast`: the speed options that pay on the device at hand, where a recipe leaves them open.

It chooses what was measured to pay (``benchmarks/RESULTS.md``), and nothing else.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from timm_accel.optim.names import LOOKAHEAD
from timm_accel.training.precision import has_bf16, launched_precision

if TYPE_CHECKING:
    from timm_accel.recipes.recipe import Recipe


def choose_fast(recipe: "Recipe", device: torch.device, saved: Mapping[str, Any] | None) -> tuple["Recipe", str]:
    """Return the recipe with what `fast` chooses, and a line for the screen.

    What the recipe sets stays, and so does what accelerate's launcher has set.

    Args:
        recipe: The recipe.
        device: The device that the run trains on.
        saved: The manifest of the state that the run resumes from, whose choices are kept; None for a new run.
    """
    found, reason = _by_device(device)
    if saved is not None:
        compiles = {name: value for name, value in found.items() if name == "torch_compile"}  # no state is tied to it
        found, reason = compiles | _by_state(saved), "as in the run that is resumed"
    chosen = {name: value for name, value in found.items() if _is_open(recipe, name)}
    listed = ", ".join(f"{name} {str(value).lower()}" for name, value in chosen.items())
    if "opt_args.fused" in chosen:
        chosen["opt_args"] = (recipe.opt_args or {}) | {"fused": chosen.pop("opt_args.fused")}
    return replace(recipe, **chosen), f"fast chooses {listed or 'nothing'}, {reason}."


def _by_device(device: torch.device) -> tuple[dict[str, Any], str]:
    in_bf16 = has_bf16(device)
    if device.type == "cpu":
        chosen: dict[str, Any] = {"channels_last": True, "opt_args.fused": True}
        if in_bf16:
            return {"mixed_precision": "bf16", **chosen}, "for a CPU with bf16 instructions"
        return chosen, "for a CPU not known to have bf16 instructions"
    if device.type == "cuda" and in_bf16:
        chosen = {"torch_compile": True} if find_spec("triton") else {}  # without it nothing is compiled for a GPU
        return {"mixed_precision": "bf16", "channels_last": True, **chosen}, "for a GPU with bf16 instructions"
    return {}, f"since nothing was measured on such a device ({device.type})"


def _by_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    recipe = saved["run"]["recipe"]
    choices = {
        "mixed_precision": saved["mixed_precision"],
        "channels_last": recipe.get("channels_last"),
        "opt_args.fused": (recipe.get("opt_args") or {}).get("fused"),
    }
    return {name: value for name, value in choices.items() if value is not None}


def _is_open(recipe: "Recipe", name: str) -> bool:
    if name == "opt_args.fused":
        is_measured = recipe.opt.lower().removeprefix(LOOKAHEAD) in ("adam", "adamw", "sgd", "momentum")
        return is_measured and not {"fused", "foreach"} & (recipe.opt_args or {}).keys()
    if name == "mixed_precision" and launched_precision() is not None:
        return False
    if name == "torch_compile" and ("ACCELERATE_DYNAMO_BACKEND" in os.environ or recipe.resolutions is not None):
        return False  # each size of images would be compiled
    return getattr(recipe, name) is None

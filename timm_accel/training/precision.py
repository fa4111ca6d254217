"""Mixed precision and compilation of a trainer, which accelerate otherwise fixes once for a process."""

import os
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import TorchDynamoPlugin

from timm_accel.messages import nearest

PRECISIONS = ("no", "fp16", "bf16")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
_FROM_LAUNCHER = "_timm_accel_from_launcher"


def check_precision(mixed_precision: Any, torch_compile: Any) -> None:
    """Raise a `ValueError` for options that no run can use.

    Args:
        mixed_precision: One of `PRECISIONS`, or None.
        torch_compile: A boolean, one of `COMPILE_MODES`, or None.
    """
    for name, value, names in (
        ("mixed_precision", mixed_precision, PRECISIONS),
        ("torch_compile", torch_compile, COMPILE_MODES),
    ):
        if value is None or (isinstance(value, bool) and name == "torch_compile") or value in names:
            continue
        known = f"{'True, False or ' if name == 'torch_compile' else ''}one of {', '.join(names)}"
        raise ValueError(f"Expected {name} to be {known}, but got {value!r}. {nearest(value, names)}")


def refuse_half_on_cpu(mixed_precision: str | None, device: torch.device) -> None:
    """Raise a `ValueError` for fp16 on a CPU, which accelerate does not train in."""
    if mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "Expected mixed_precision to be no or bf16 on a CPU, since fp16 needs a GPU, but got 'fp16'. Pass 'bf16'."
        )


def accelerator_options(mixed_precision: str | None, torch_compile: bool | str | None) -> dict[str, Any]:
    """Return the keyword arguments of an `Accelerator`, and let it set them again.

    accelerate keeps the precision and the compilation of the first `Accelerator` for the process (1.15). An option of
    None is that of the launcher, or of an `Accelerator` that was there before any trainer with options.

    Args:
        mixed_precision: As for `check_precision`.
        torch_compile: As for `check_precision`.
    """
    shared = AcceleratorState._shared_state
    launched = PartialState._shared_state.get(_FROM_LAUNCHER)
    if mixed_precision is None and torch_compile is None and launched is None:
        return {}
    if launched is None:
        launched = {"mixed_precision": shared.get("_mixed_precision"), "dynamo_plugin": shared.get("dynamo_plugin")}
    AcceleratorState._reset_state()
    PartialState._shared_state[_FROM_LAUNCHER] = launched
    return {
        "mixed_precision": mixed_precision or launched["mixed_precision"],
        "dynamo_plugin": launched["dynamo_plugin"] if torch_compile is None else _dynamo(torch_compile),
    }


def _dynamo(torch_compile: bool | str) -> TorchDynamoPlugin:
    if torch_compile is False:
        return TorchDynamoPlugin(backend="no")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    backend = "inductor" if backend.lower() == "no" else backend  # torch's default
    return TorchDynamoPlugin(backend=backend, mode=None if torch_compile is True else torch_compile)

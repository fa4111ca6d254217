"""Mixed precision and compilation of a trainer, which accelerate otherwise fixes once for a process."""

import os
import warnings
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import TorchDynamoPlugin

from timm_accel.messages import nearest

PRECISIONS = ("no", "fp16", "bf16")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
_FROM_LAUNCHER = "_timm_accel_from_launcher"
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")  # of x86-64, the last two of ARM


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


def has_bf16(device: torch.device) -> bool | None:
    """Return whether a device calculates in bf16, instead of emulating it; None where torch cannot tell.

    Args:
        device: The device that a run trains on.

    Source: ``torch.cpu.get_capabilities`` (not in older versions), ``torch.cuda.is_bf16_supported``.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or capabilities is None:
        return None
    return any(capabilities().get(name, False) for name in _BF16_INSTRUCTIONS)


def launched_precision() -> str | None:
    """Return the precision that accelerate's launcher was given; None without it."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION")


def refuse_half_on_cpu(mixed_precision: str | None, device: torch.device) -> None:
    """Raise a `ValueError` for fp16 on a CPU, which accelerate does not train in.

    Args:
        mixed_precision: The trainer's precision; None for the launcher's.
        device: The device that the trainer will train on.
    """
    if (mixed_precision or launched_precision()) == "fp16" and device.type == "cpu":
        raise ValueError(
            "Expected mixed_precision to be no or bf16 on a CPU, since fp16 needs a GPU, but got 'fp16'. Pass "
            f"{'bf16' if has_bf16(device) else 'no'!r}."
        )


def warn_of_emulation(mixed_precision: str, device: torch.device) -> None:
    """Warn where a run in bf16 is slower than one in float32.

    Args:
        mixed_precision: The precision of the run, its own or the launcher's.
        device: The device that it trains on.
    """
    if mixed_precision == "bf16" and has_bf16(device) is False:
        processor, remedy = ("GPU", "'fp16' or 'no'") if device.type == "cuda" else ("processor", "'no'")
        warnings.warn(
            f"mixed_precision is 'bf16', but this {processor} has no bf16 instructions and emulates them, so a step "
            f"may take several times as long as in float32. Pass mixed_precision={remedy}.",
            stacklevel=2,
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

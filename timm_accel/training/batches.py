"""What a batch and a model's outputs look like: the usual forms, for `LoopTrainer`'s hooks."""

from collections.abc import Mapping
from functools import partial
from inspect import unwrap
from typing import Any

import torch
from torch import nn

INPUTS = ("image", "images", "pixel_values", "inputs")
TARGETS = ("label", "labels", "target", "targets")


def _key(batch: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    found = [name for name in names if name in batch]
    return found[0] if len(found) == 1 else None


def _keys(batch: Mapping[str, Any]) -> tuple[str, str]:
    keys = _key(batch, INPUTS), _key(batch, TARGETS)
    if keys[0] is None or keys[1] is None:
        raise TypeError(
            f"Expected a batch with one of {', '.join(INPUTS)} and one of {', '.join(TARGETS)}, but got the keys "
            f"{', '.join(map(str, batch))}. Override unpack_batch() and repack_batch()."
        )
    return keys[0], keys[1]


def unpack(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and targets of a batch: a sequence that begins with them, or a mapping with the usual keys.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(batch, Mapping):
        inputs, targets = _keys(batch)
        return batch[inputs], batch[targets]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return batch[0], batch[1]
    length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise TypeError(
        f"Expected a batch to be (inputs, targets, …) or a mapping with these, but got {type(batch).__name__}{length}. "
        "Override unpack_batch() and repack_batch()."
    )


def repack(batch: Any, inputs: Any, targets: Any) -> Any:
    """Return a batch of the same form with other inputs and targets."""
    if isinstance(batch, Mapping):
        keys = _keys(batch)
        return {**batch, keys[0]: inputs, keys[1]: targets}
    if hasattr(batch, "_fields"):  # a named tuple
        return batch._replace(**dict(zip(batch._fields[:2], (inputs, targets), strict=True)))
    return type(batch)([inputs, targets, *batch[2:]])


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits in what a model returned: the tensor itself, ``logits``, or the first of several tensors.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, torch.Tensor):
        return named
    if isinstance(outputs, tuple | list) and len(outputs) > 0 and isinstance(outputs[0], torch.Tensor):
        return outputs[0]
    raise TypeError(
        "Expected the model's outputs to be logits, to have .logits, or to begin with them, but got "
        f"{type(outputs).__name__}. Override logits_of()."
    )


def wrong_dtype(model: Any, images: Any) -> TypeError | None:
    """Return the error for images that a model failed on since its weights have another dtype; None for others."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    weights = next((each.dtype for each in parameters if each.is_floating_point()), None)
    if weights is None or not (isinstance(images, torch.Tensor) and images.ndim == 4) or images.dtype == weights:
        return None
    return TypeError(
        f"Expected images to be {weights}, as the model's weights are, but got {images.dtype}. Convert them in the "
        "transform of the dataset; create_datasets() normalizes uint8 images on the device."
    )


def takes_all_outputs(loss_fn: Any) -> bool:
    """Whether a loss may want more than the logits: every loss that is not of torch, timm or this package."""
    loss_fn = unwrap(loss_fn)  # a watched one
    while isinstance(loss_fn, partial):
        loss_fn = loss_fn.func
    module = getattr(loss_fn, "__module__", None) or type(loss_fn).__module__
    return module.split(".")[0] not in ("torch", "timm", "timm_accel")

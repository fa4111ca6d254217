"""What the files of a state may hold: tensors and plain values, which load without running code."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Copy = Callable[[torch.Tensor], torch.Tensor]
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)


def plain(value: Any, where: str, copy: Copy | None = None) -> Any:
    """Return the value with numpy's numbers as python's numbers. Nothing of it changes with the original but tensors.

    Args:
        value: The value.
        where: What it is, for the message.
        copy: What copies a tensor; None for the tensors themselves.

    Raises:
        TypeError: Something in it is neither a tensor nor a plain value, so that it would load only by running code.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _PLAIN:
        return value
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return value if copy is None else copy(value)
    if isinstance(value, dict):
        kind: Any = next((each for each in (OrderedDict, Counter) if isinstance(value, each)), dict)
        copied = kind({plain(key, where): plain(item, f"{where}[{key!r}]", copy) for key, item in value.items()})
        if hasattr(value, "_metadata"):  # torch's versions of the format of each module
            copied._metadata = value._metadata
        return copied
    if type(value) in (list, tuple, set):
        return type(value)(plain(item, where, copy) for item in value)
    raise TypeError(
        f"Expected {where} to hold tensors and plain values, since a state must load without running code, but got "
        f"{type(value).__module__}.{type(value).__qualname__}. Turn it into numbers, text, lists or tensors in "
        "state_dict()."
    )

"""Try a new model on two black images, on torch's meta device, which computes only shapes."""

from copy import deepcopy
from typing import Any

import timm
import torch
from torch import nn

REFUSALS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError, ZeroDivisionError)
"""The errors of timm's constructors for a value that a family lacks."""


def create_on_meta(name: str, **options: Any) -> nn.Module:
    """Create a timm model on the meta device, where it has only shapes.

    Args:
        name: A model of ``timm.list_models()``, or ``local-dir:FOLDER``.
        **options: Arguments of ``timm.create_model``.

    Raises:
        Exception: One of `REFUSALS` for a value that the family lacks, a `TypeError` for an argument.
    """
    with torch.device("meta"):
        return timm.create_model(name, **options)


def output_shape(model: nn.Module, input_size: tuple[int, int, int], batch_size: int = 2) -> tuple[int, ...]:
    """Return the shape of a model's output in evaluation; the model does not change.

    Args:
        model: Any module from images to one tensor.
        input_size: ``(C, H, W)`` of an image.
        batch_size: Images in the batch.

    Raises:
        Exception: The model cannot take such images.
    """
    with torch.no_grad():
        return tuple(without_data(model).eval()(torch.zeros(batch_size, *input_size, device="meta")).shape)


def without_data(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device; `deepcopy` finds stand-ins for all tensors there, so none is copied.

    Args:
        model: Any module.
    """
    stand_ins: dict[int, torch.Tensor] = {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    for parameter in model.parameters():
        stand_ins[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    return deepcopy(model, stand_ins)

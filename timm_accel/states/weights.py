"""The weights of a run and of a state: those of the model and, after their first update, the EMA weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timm.models import clean_state_dict

MODEL = "model"
EMA_MODEL = "ema_model"
EMA_PROGRESS = "ema_progress"
"""The component of a state that tells under ``updated`` whether the EMA weights were ever updated."""

BEST_FOLDERS = {MODEL: "best", EMA_MODEL: "best_ema"}
"""The folders of a run for the best weights of each."""


def metric_prefix(weights: str) -> str:
    """Return the prefix of the metrics of these weights in the history; that of the model is empty."""
    return "" if weights == MODEL else f"{weights}_"


class HeldWeights(NamedTuple):
    """The weights of a state that are to be used.

    Args:
        name: ``ema_model`` or ``model``.
        tensors: The tensors by their names in the model.
    """

    name: str
    tensors: dict[str, torch.Tensor]


def weights_of(common: Mapping[str, Any], name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of ``model`` or ``ema_model`` in the ``common.pt`` of a state, by their names in the model."""
    return common[MODEL] if name == MODEL else clean_state_dict(common["components"][name])  # timm wraps the EMA model


def held_weights(common: Mapping[str, Any]) -> HeldWeights:
    """Return the EMA weights of a state, or those of the model if it has no updated EMA weights.

    Args:
        common: The content of its ``common.pt``.
    """
    components = common["components"]
    if components.get(EMA_PROGRESS, {}).get("updated", False):
        return HeldWeights(EMA_MODEL, weights_of(common, EMA_MODEL))
    return HeldWeights(MODEL, clean_state_dict(common[MODEL]))

"""Which weights a run has and a state holds: the model's and, once they were updated, the EMA weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timm.models import clean_state_dict

MODEL = "model"
EMA_MODEL = "ema_model"
EMA_PROGRESS = "ema_progress"
"""The component of a state that tells under ``updated`` whether the EMA weights have moved from where they began."""

BEST_FOLDERS = {MODEL: "best", EMA_MODEL: "best_ema"}
"""The folders of a run that keep the best weights of each."""


def metric_prefix(weights: str) -> str:
    """Return what comes before the name of a metric of these weights in the history: nothing for the model's own."""
    return "" if weights == MODEL else f"{weights}_"


class HeldWeights(NamedTuple):
    """The weights to use of a state.

    Args:
        name: ``ema_model`` or ``model``.
        tensors: By the names that they have in the model.
    """

    name: str
    tensors: dict[str, torch.Tensor]


def held_weights(common: Mapping[str, Any]) -> HeldWeights:
    """Return the EMA weights of a state, or the model's where there are none or they were not updated yet.

    Args:
        common: What its ``common.pt`` holds.
    """
    components = common["components"]
    if components.get(EMA_PROGRESS, {}).get("updated", False):
        return HeldWeights(EMA_MODEL, clean_state_dict(components[EMA_MODEL]))  # timm's module of the model inside
    return HeldWeights(MODEL, clean_state_dict(common["model"]))

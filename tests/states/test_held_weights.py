"""Which weights a state holds, and by which names."""

from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from timm_accel.states.weights import held_weights, metric_prefix


def common(**components: Any) -> dict[str, Any]:
    return {"model": {"weight": torch.tensor([1.0])}, "components": components}


def test_the_ema_weights_are_held_once_they_were_updated_by_the_names_of_the_model() -> None:
    ema = ModelEmaV3(nn.Linear(2, 2))
    name, tensors = held_weights(common(ema_model=ema.state_dict(), ema_progress={"updated": True}))
    assert name == "ema_model"
    assert tensors.keys() == {"weight", "bias"}
    assert torch.equal(tensors["weight"], ema.module.weight)


@pytest.mark.parametrize("components", [{}, {"ema_model": {"module.weight": 2}, "ema_progress": {"updated": False}}])
def test_the_weights_of_the_model_are_held_without_ema_weights_or_before_their_first_update(
    components: dict[str, Any],
) -> None:
    name, tensors = held_weights(common(**components))
    assert (name, tensors["weight"].item()) == ("model", 1)


def test_metrics_of_the_ema_weights_have_their_name_before_them() -> None:
    assert (metric_prefix("model"), metric_prefix("ema_model")) == ("", "ema_model_")

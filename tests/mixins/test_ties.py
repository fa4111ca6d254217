"""Tied weights elsewhere than in the EMA model: Lookahead, clipping and model soups take each tensor once."""

from math import inf
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import Lookahead
from tiny_runs import fit, make_trainer, tiny_data
from torch import nn

from timm_accel.mixins import GradientClippingMixin, LookaheadMixin
from timm_accel.model_soup import average_weights
from timm_accel.models import open_classifier, save_classifier


def tied_model() -> nn.Sequential:
    """Three layers with one weight, and one of them twice."""
    torch.manual_seed(1)
    layers = [nn.Linear(8, 8) for _ in range(3)]
    layers[1].weight = layers[2].weight = layers[0].weight
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), *layers, layers[0], nn.Linear(8, 3))


def test_lookahead_moves_the_slow_weights_of_a_tied_tensor_once() -> None:
    class Noting(LookaheadMixin):
        def after_update(self) -> None:
            super().after_update()
            seen.append(self.model[2].weight.clone())

    seen: list[torch.Tensor] = []
    model = tied_model()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.25, k=3)
    trainer = fit(make_trainer(Noting, model, optimizer=optimizer), tiny_data(20), num_epochs=1)
    slow = seen[2] + 0.25 * (seen[4] - seen[2])  # the slow weights begin with those of update 3, of 5
    assert not torch.equal(seen[4], seen[2])
    for number in (2, 3, 4, 5):
        torch.testing.assert_close(trainer.model[number].weight, slow)


def test_clipping_counts_the_gradient_of_a_tied_tensor_once() -> None:
    class Noting(GradientClippingMixin):
        def clip_gradients(self) -> None:
            super().clip_gradients()
            single = {id(each): each.grad for each in self.model.parameters()}
            norms.append(sum(gradient.square().sum() for gradient in single.values()).sqrt().item())

    norms: list[float] = []
    fit(make_trainer(Noting, tied_model(), clip_grad=1e-3))
    assert norms == [pytest.approx(1e-3, rel=1e-3)] * 8


def test_a_soup_of_tied_weights_is_the_mean_of_each_tensor(tmp_path: Path) -> None:
    folders = []
    for value in (1.0, 4.0):
        model: Any = timm.create_model("coat_lite_tiny", num_classes=3, img_size=32)
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        model.head.bias.data[0] = inf
        folders.append(tmp_path / f"{value}")
        save_classifier(model, folders[-1], ["cat", "dog", "owl"])
    soup = open_classifier(average_weights(folders, out=tmp_path / "soup"))[0].state_dict()
    assert len({tensor.data_ptr() for tensor in soup.values()}) < len(soup)
    assert soup["head.bias"][0] == inf
    soup["head.bias"][0] = 2.5
    for name, tensor in soup.items():
        assert torch.equal(tensor, torch.full_like(tensor, 2.5)), name

"""Accumulating gradients is a larger batch; clipping happens once an update."""

from copy import deepcopy

import pytest
import torch
from timm.models import model_parameters
from timm.utils import adaptive_clip_grad
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from timm_accel import LoopTrainer
from timm_accel.mixins import GradientClippingMixin


def still_model() -> nn.Sequential:
    """No BatchNorm and no dropout: an image counts the same in any batch."""
    model = tiny_model(batch_norm=False)
    model[4] = nn.Identity()
    return model


def test_four_batches_of_eight_are_one_of_thirty_two() -> None:
    data = tiny_data(80)  # 2 batches of 32 and one of 16, whose group has 2 micro-batches
    large = fit(make_trainer(model=still_model()), data, per_device_batch_size=32)
    small = fit(make_trainer(model=still_model()), data, per_device_batch_size=8, gradient_accumulation_steps=4)
    assert large.num_updates == small.num_updates == 6
    for name, tensor in large.model.state_dict().items():
        assert torch.allclose(tensor, small.model.state_dict()[name], atol=1e-6), name
    for name in ("train_loss_epoch",):
        values = [trainer.run_history.get_metric_values(name) for trainer in (large, small)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


class Watching(LoopTrainer):
    """Notes the gradients before and after clipping, and how often it happened."""

    def training_run_start(self) -> None:
        self.clips: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
        super().training_run_start()

    def clip_gradients(self) -> None:
        before = [parameter.grad.clone() for parameter in self.unwrapped_model.parameters()]
        super().clip_gradients()
        self.clips.append((before, [parameter.grad.clone() for parameter in self.unwrapped_model.parameters()]))


class Clipping(Watching, GradientClippingMixin):
    pass


def clipped_by_hand(model: nn.Module, gradients: list[torch.Tensor], mode: str, value: float) -> list[torch.Tensor]:
    model = deepcopy(model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    if mode == "norm":
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        return [gradient * (value / (norm + 1e-6)).clamp(max=1) for gradient in gradients]
    if mode == "value":
        return [gradient.clamp(-value, value) for gradient in gradients]
    adaptive_clip_grad(list(model_parameters(model, exclude_head=True)), value)
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(("mode", "value"), [("norm", 0.5), ("value", 0.05), ("agc", 0.01)])
def test_clipping_happens_once_an_update_and_is_the_one_by_hand(mode: str, value: float) -> None:
    model = still_model()
    trainer = make_trainer(
        Clipping, model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), clip_grad=value, clip_mode=mode
    )
    fit(trainer, gradient_accumulation_steps=2, num_epochs=1)
    assert len(trainer.clips) == trainer.num_updates == 2
    for before, after in trainer.clips:
        expected = clipped_by_hand(model, before, mode, value)
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(after, expected, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if mode == "agc":  # the head is left alone
        before, after = trainer.clips[0]
        assert torch.equal(before[-1], after[-1])


def test_gradient_clip_value_of_upstream_clips_by_value_once() -> None:
    trainer = make_trainer(Watching, model=still_model())
    fit(trainer, gradient_accumulation_steps=2, num_epochs=1, gradient_clip_value=0.05)
    for before, after in trainer.clips:
        assert all(torch.equal(a.clamp(-0.05, 0.05), b) for a, b in zip(before, after, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_clip_grad_gradients_stay() -> None:
    trainer = fit(make_trainer(Clipping), num_epochs=1)
    assert all(torch.equal(a, b) for before, after in trainer.clips for a, b in zip(before, after, strict=True))

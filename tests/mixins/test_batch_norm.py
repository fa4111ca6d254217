"""The statistics of BatchNorm in distributed training, with a stand-in for three ranks that hold the same numbers."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import fit, make_trainer, tiny_model
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from timm_accel.mixins import DistributedBatchNormMixin, FreezingMixin, ModelEmaMixin
from timm_accel.mixins.batch_norm import _moving_statistics

VALUE = 1.5 + 2 * 2**-23


class OfThree(FreezingMixin, DistributedBatchNormMixin, ModelEmaMixin):
    """One of three processes; it notes the numbers in each reduction."""

    def training_run_start(self) -> None:
        self.reduced: list[int] = []
        super().training_run_start()

    def train_epoch_end(self) -> None:
        run, kind = self.current_run(), type(self.current_run())
        accelerator = SimpleNamespace(num_processes=3, reduce=self._reduce)
        run.__class__ = type("OneOfThree", (kind,), {"accelerator": accelerator})
        super().train_epoch_end()
        run.__class__ = kind

    def _reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "mean"
        self.reduced.append(tensor.numel())
        return (tensor + tensor + tensor) / 3


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_keep_every_bit_on_three_processes(frozen: bool) -> None:
    value = torch.tensor(VALUE)
    assert (value + value + value) / 3 != value
    model = tiny_model()
    model[1].running_mean.fill_(VALUE)
    trainer = make_trainer(OfThree, model, ema_decay=0.1, freeze_schedule={0: 2} if frozen else None)
    fit(trainer, num_epochs=1)
    assert trainer.reduced == ([] if frozen else [4 * 4])  # mean and variance, of model and EMA model, at once
    for module in (model, trainer.ema_model.module):
        assert torch.equal(module[1].running_mean, torch.full((4,), VALUE)) is frozen


@pytest.mark.parametrize("same_tensor", [True, False])
def test_a_statistic_with_two_names_is_reduced_once(same_tensor: bool) -> None:
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3)]
    for name in ("running_mean", "running_var"):
        shared = getattr(norms[0], name)
        setattr(norms[1], name, shared if same_tensor else shared[:])  # or another tensor of the same memory
    norms[0].eval()
    model = nn.Sequential(*norms, nn.Flatten(), nn.Linear(192, 3))
    trainer = fit(make_trainer(OfThree, model, ema_decay=0.1), num_epochs=1)
    assert trainer.reduced == [4 * 3]  # mean and variance, of model and EMA model


def test_the_statistics_that_training_moves_are_those_of_norms_in_training() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(2)), nn.LayerNorm(2), FrozenBatchNorm2d(2))
    model.train()
    model[0].eval()
    assert _moving_statistics(model) == {"1.0.running_mean", "1.0.running_var"}
    assert _moving_statistics(nn.BatchNorm1d(2)) == {"running_mean", "running_var"}
    assert _moving_statistics(model.eval()) == set()

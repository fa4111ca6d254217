"""Upstream's four methods of saving still work, more than once, and keep the EMA weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import make_run, train
from tiny_runs import fit, make_trainer, same_weights, tiny_model
from torch import nn

from timm_accel.mixins import ModelEmaMixin, TimmSchedulerMixin


@pytest.fixture
def trained() -> Any:
    return train(make_run(None, callbacks=()), num_epochs=1)


def started() -> Any:
    """Another trainer whose run has just begun: its weights, EMA weights and optimizer are not those of `trained`."""
    return train(make_run(None, callbacks=(), seed=9), num_epochs=1)


def assert_alike(first: Any, second: Any) -> None:
    assert same_weights(first.model, second.model)
    assert same_weights(first.ema_model.module, second.ema_model.module)
    assert first.learning_rate == second.learning_rate
    states = [trainer.unwrapped_optimizer.state_dict()["state"] for trainer in (first, second)]
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name])


def test_a_checkpoint_keeps_the_ema_weights(trained: Any, tmp_path: Path) -> None:
    trained.save_checkpoint(tmp_path / "last.pt", {"note": "mine"})
    other = started()
    assert not same_weights(other.ema_model.module, trained.ema_model.module)
    loaded = other.load_checkpoint(tmp_path / "last.pt")
    assert loaded["note"] == "mine"
    assert_alike(trained, other)
    assert set(torch.load(tmp_path / "last.pt", weights_only=True)) >= {"model_state_dict", "optimizer_state_dict"}


def test_a_checkpoint_without_ema_weights_loads_into_a_trainer_with_them(tmp_path: Path) -> None:
    plain = fit(make_trainer())
    plain.save_checkpoint(tmp_path / "plain.pt", save_optimizer=False)
    averaging = fit(make_trainer(ModelEmaMixin, ema_decay=0.1))
    before = {name: value.clone() for name, value in averaging.ema_model.module.state_dict().items()}
    averaging.load_checkpoint(tmp_path / "plain.pt", load_optimizer=False)
    assert same_weights(plain.model, averaging.model)
    assert all(torch.equal(value, before[name]) for name, value in averaging.ema_model.module.state_dict().items())


def test_every_training_state_of_a_run_loads_and_keeps_the_ema_weights(trained: Any, tmp_path: Path) -> None:
    for number in range(3):  # upstream registers the scheduler again each time, and cannot load the second
        trained.save_training_state(tmp_path / str(number), {"number": number})
    for number in range(3):
        other = started()
        assert other.load_training_state(tmp_path / str(number))["number"] == number
        assert_alike(trained, other)


def test_a_compiled_model_is_saved_under_its_own_names_and_stays_compiled(tmp_path: Path) -> None:
    model = torch.compile(tiny_model(), backend="eager")
    trainer = fit(make_trainer(TimmSchedulerMixin, model))
    trainer.save_checkpoint(tmp_path / "last.pt")
    names = torch.load(tmp_path / "last.pt", weights_only=True)["model_state_dict"]
    assert names.keys() == tiny_model().state_dict().keys()
    assert isinstance(trainer.get_model(keep_torch_compile=False), nn.Sequential)
    assert type(trainer.model).__name__ == "OptimizedModule"

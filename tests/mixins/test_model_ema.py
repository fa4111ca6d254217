"""EMA weights in a run: ties, values that are not finite, and a decay that follows the run's length."""

import shutil
import warnings
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refused
from resumed_runs import every_update, make_run, states, train
from safetensors.torch import load_file
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from timm_accel.callbacks import Callback, SaveBestCallback
from timm_accel.lr_finder import find_lr
from timm_accel.mixins import ClassificationMetricsMixin, ModelEmaMixin
from timm_accel.models import EmaUpdate, choose_ema_decay


class Classifying(ClassificationMetricsMixin, ModelEmaMixin):
    """EMA weights with an accuracy."""


class TiedModel(nn.Module):
    """Three layers with one weight, one layer used twice, and buffers that are infinite, whole or boolean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.layers[1].weight = self.layers[2].weight = self.layers[0].weight
        self.norm = nn.BatchNorm1d(8)
        self.again = self.norm
        self.head = nn.Linear(8, 3)
        self.register_buffer("input_max", torch.tensor(inf))
        self.register_buffer("mask", torch.tensor([0.0, -inf, 0.0]))
        self.register_buffer("is_used", torch.tensor([True, False, True]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images).clamp(-self.input_max, self.input_max)
        for layer in self.layers:
            features = self.again(self.norm(layer(features)).relu())
        return self.head(features) + self.mask.clamp(min=-5)


class Weights(Callback):
    """Keeps the weights of each update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, torch.Tensor]] = []

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        self.updates.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})


def test_the_ema_weights_of_a_tied_model_move_once_an_update(tmp_path: Path) -> None:
    weights, best = Weights(), SaveBestCallback("accuracy")
    options = {"num_classes": 3, "ema_decay": 0.6, "ema_warmup": False, "callbacks": [weights, best]}
    trainer = fit(make_trainer(Classifying, TiedModel(), run_dir=tmp_path, **options), eval_dataset=tiny_data(6))
    expected = weights.updates[0]  # timm's first update has decay 0
    for update in weights.updates[1:]:
        for name, tensor in update.items():
            expected[name] = expected[name].lerp(tensor, 1 - 0.6) if tensor.is_floating_point() else tensor
    expected |= {name: tensor for name, tensor in update.items() if name in ("input_max", "mask")}
    found = trainer.ema_model.module.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not torch.equal(found["layers.0.weight"], trainer.model.layers[0].weight)
    saved = load_file(tmp_path / "best_ema" / "model.safetensors")
    assert saved["input_max"] == inf
    assert not any(tensor.isnan().any() for tensor in saved.values())


# The decay


@pytest.mark.parametrize(
    ("total", "every", "decay"),
    [
        (100_000, 1, 0.9998),
        (25_000, 1, 0.9998),
        (20_000, 1, 0.99975),
        (1000, 1, 0.995),
        (1000, 10, 0.95),
        (320, 1, 0.984375),
        (8, 1, 0.375),
        (5, 1, 0.0),
        (1, 1, 0.0),
    ],
)
def test_the_chosen_decay_averages_over_a_fifth_of_the_run(total: int, every: int, decay: float) -> None:
    assert choose_ema_decay(total, every) == pytest.approx(decay, abs=1e-12)
    assert every / (1 - choose_ema_decay(total, every)) <= max(total / 5, every) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "decay", "window"), [({}, 0.6875, "3"), ({"ema_update_every": "epoch"}, 0.0, "4"),
                                     ({"ema_update_every": 2}, 0.375, "3")]
)  # fmt: skip
def test_a_decay_that_is_not_given_follows_the_run_and_is_printed_once(
    options: dict[str, Any], decay: float, window: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(ModelEmaMixin, **options)
    trainer.evaluate(tiny_data(4), per_device_batch_size=4, dataloader_kwargs={"num_workers": 0})
    assert "ema_decay" not in capsys.readouterr().out
    fit(trainer, num_epochs=4)
    assert trainer.ema_decay is None
    assert trainer.ema_model.decay == pytest.approx(decay)
    out = capsys.readouterr().out
    line = f"ema_decay is {decay:.4g}: at the end, the EMA weights average over about {window} of the run's 16 updates."
    assert out.splitlines().count(line) == out.count("ema_decay") == 1
    fit(trainer, num_epochs=2)  # another run has another length
    assert trainer.ema_model.decay == pytest.approx(max(0, 1 - (1 - decay) * 2))
    assert capsys.readouterr().out.count("ema_decay is") == 1


def test_a_given_decay_is_kept_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match=r"^ema_decay=0.9 averages over about 10 of the run's 8 updates, so the EMA"):
        trainer = fit(make_trainer(ModelEmaMixin, ema_decay=0.9, ema_warmup=False))
    assert trainer.ema_model.decay == 0.9
    assert "ema_decay" not in capsys.readouterr().out


def test_a_resumed_run_keeps_the_decay_that_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(make_run(tmp_path, ema_decay=None), num_epochs=2)  # 14 updates
    assert first.ema_model.decay == pytest.approx(1 - 5 / 14)
    capsys.readouterr()
    longer = train(make_run(tmp_path, ema_decay=None), num_epochs=4, resume_from="auto")
    assert longer.ema_model.decay == first.ema_model.decay
    assert "ema_decay is 0.6429: at the end, the EMA weights average over about 3 of the run's 28 updates." in (
        capsys.readouterr().out
    )
    again = train(make_run(tmp_path, ema_decay=None), num_epochs=6, resume_from="auto")
    assert again.ema_model.decay == first.ema_model.decay
    given = train(make_run(tmp_path, ema_decay=0.25), num_epochs=7, resume_from="auto")
    assert given.ema_model.decay == 0.25


def test_a_state_of_the_first_format_resumes_with_the_default_of_its_time(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "states" / "written_by_0_1_0", tmp_path / "run")
    file = states(tmp_path / "run")[0] / "common.pt"
    assert torch.load(file, weights_only=True)["components"]["ema_progress"].keys() == {"updated"}
    assert train(make_run(tmp_path / "run", ema_decay=None), resume_from="auto").ema_model.decay == 0.9998


def test_a_learning_rate_range_test_chooses_and_prints_no_decay(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(ModelEmaMixin)
    find_lr(trainer, tiny_data(), num_updates=10, per_device_batch_size=4, train_dataloader_kwargs={"num_workers": 0})
    assert trainer.ema_decay is None
    assert "ema_decay" not in capsys.readouterr().out


# Weights that are not finite


class Breaking(Callback):
    """Breaks a tensor of the EMA model, or of both, after an update."""

    def __init__(self, at: int, name: str, value: float, model_too: bool = False) -> None:
        self.at, self.name, self.value, self.model_too = at, name, value, model_too

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.num_updates == self.at:
            modules = [trainer.ema_model.module, *([trainer.model] if self.model_too else [])]
            for module in modules:
                module.state_dict()[self.name].view(-1)[0] = self.value


@pytest.mark.parametrize(
    ("at", "sync_every", "name", "value", "seen"),
    [
        (2, 3, "0.weight", nan, "in epoch 1, after 3 updates"),
        (4, 10, "1.running_mean", inf, "in epoch 1, after 4 updates"),
        (5, 3, "1.running_var", nan, "in epoch 2, after 6 updates"),
        (7, 100, "5.bias", inf, "in epoch 2, after 8 updates"),
    ],
)
def test_ema_weights_that_are_not_finite_end_the_run_and_are_never_saved(
    at: int, sync_every: int, name: str, value: float, seen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [SaveBestCallback("accuracy"), Breaking(at, name, value), every_update()]
    options = {"num_classes": 3, "ema_decay": 0.1, "sync_every_n_updates": sync_every}
    trainer = make_trainer(Classifying, callbacks=callbacks, run_dir=tmp_path, **options)
    sentence = f"Expected the EMA weights to be finite where the model's are, but {name} is not"
    with refused(RuntimeError, f"{sentence} {seen}"):
        fit(trainer, eval_dataset=tiny_data(6))
    assert f"a state to be written to {str(tmp_path)!r}, but it was not ({sentence} in epoch" in capsys.readouterr().out
    assert len(states(tmp_path)) >= at - 1
    assert all(map(_is_finite, states(tmp_path)))
    assert (tmp_path / "best_ema").exists() == (at > 4)
    if at > 4:
        saved = load_file(tmp_path / "best_ema" / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in saved.values())


def _is_finite(state: Path) -> bool:
    held = torch.load(state / "common.pt", weights_only=True)["components"]["ema_model"]
    return all(tensor.isfinite().all() for tensor in held.values())


def test_ema_weights_that_follow_an_infinite_model_end_no_run() -> None:
    callbacks = [Breaking(2, "1.running_var", inf, model_too=True)]
    trainer = fit(make_trainer(ModelEmaMixin, callbacks=callbacks, ema_decay=0.1, sync_every_n_updates=1))
    assert trainer.num_updates == 8
    assert trainer.ema_model.module[1].running_var[0] == inf


def test_an_infinite_buffer_may_turn_finite_between_two_updates_of_the_ema_weights() -> None:
    class Lowest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()
            self.register_buffer("lowest", torch.tensor(inf))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.lowest = torch.minimum(self.lowest, images.detach().min())
            return self.inner(images)

    class Forgetting(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates in (2, 5):
                trainer.model.lowest.fill_(inf)

    class Late(ModelEmaMixin):
        def after_update(self) -> None:
            if self.num_updates == 3:
                self.model.lowest.fill_(inf)  # at the update of the EMA weights
            super().after_update()

    options = {"ema_decay": 0.1, "ema_update_every": 3, "sync_every_n_updates": 1, "callbacks": [Forgetting]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ema_decay")
        trainer = fit(make_trainer(Late, Lowest(), **options))
    assert trainer.num_updates == 8
    assert trainer.ema_model.module.lowest.isfinite()


def test_no_pairs_are_looked_for_after_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(EmaUpdate, "_pair", lambda self, pair=EmaUpdate._pair: (built.append(1), pair(self)))
    fit(make_trainer(ModelEmaMixin, ema_decay=0.1), num_epochs=3)
    assert len(built) == 2  # before and after the values that are not finite at the start are known

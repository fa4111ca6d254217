"""Averages of several runs' weights."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusal import contents, refused
from resumed_runs import sign_again
from tiny_runs import fit, make_trainer, tiny_data
from torch import nn

from timm_accel.callbacks import SaveBestCallback, SaveStateCallback
from timm_accel.mixins import ClassificationMetricsMixin, ModelEmaMixin
from timm_accel.model_soup import average_weights
from timm_accel.models import open_classifier, save_classifier
from timm_accel.states.folder import state_folders


def model(seed: int = 0, **options: Any) -> nn.Module:
    """A model whose weights and BatchNorm statistics differ by the seed, and which has counted `seed` batches."""
    torch.manual_seed(seed)
    created = timm.create_model("test_resnet", **({"num_classes": 3} | options))
    for buffer in created.buffers():
        buffer.copy_(torch.rand(buffer.shape) + 0.5 if buffer.is_floating_point() else torch.tensor(seed))
    return created


def write(root: Path, seed: int, metric: str = "accuracy", value: float | None = None) -> Path:
    folder = root / f"run{seed}" / "best"
    about: dict[str, Any] = {"temperature": 1.0 + seed}
    if value is not None:
        about |= {"best": {"metric": metric, "value": value, "epoch": 1}, "greater_is_better": True}
    save_classifier(model(seed), folder, ["a", "b", "c"], **about)
    os.utime(folder / "model.safetensors", (1000 - seed, 1000 - seed))  # higher seeds are older
    return folder


def check_mean(folder: Path, seeds: tuple[int, ...]) -> None:
    averaged, config = open_classifier(folder)
    models = [model(seed).state_dict() for seed in seeds]
    for name, tensor in averaged.state_dict().items():
        if tensor.is_floating_point():
            mean = torch.stack([each[name].double() for each in models]).mean(0).float()
            assert torch.allclose(tensor, mean, rtol=1e-6, atol=0), name
            assert tensor.dtype == torch.float32
        else:
            assert tensor == min(seeds), name  # of the newest
    assert len(config["averaged"]["folders"]) == len(seeds)


def test_the_mean_of_all_is_a_folder_to_use(tmp_path: Path) -> None:
    folders = [write(tmp_path, seed) for seed in (2, 1, 3)]
    out = average_weights([folders[0], str(folders[1]), folders[2].parent], out=tmp_path / "soup")
    check_mean(out, (1, 2, 3))
    by_timm = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(by_timm(images), open_classifier(out)[0](images))
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == ["a", "b", "c"]
    assert config["averaged"] == {"method": "uniform", "folders": [str(folder) for folder in folders]}
    assert "temperature" not in config  # fitted to one of them
    assert {path.name for path in tmp_path.iterdir()} == {"run1", "run2", "run3", "soup"}


def test_the_mean_of_equal_weights_is_bit_equal(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    out = average_weights([folder] * 3, out=tmp_path / "soup")
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("metric", "values", "greater", "chosen"),
    [
        ("accuracy", {1: 0.5, 2: 0.9, 3: 0.7}, None, (2, 3)),
        ("eval_loss_epoch", {1: 0.5, 2: 0.9, 3: 0.7}, None, (1, 3)),  # trap: the highest loss is not the best
        ("ema_model_eval_loss_epoch", {1: 0.5, 2: 0.9, 3: 0.7}, None, (1, 3)),
        ("error", {1: 0.5, 2: 0.9, 3: 0.7}, False, (1, 3)),
    ],
)
def test_the_best_by_the_metric_are_chosen_with_its_sign(
    metric: str, values: dict[int, float], greater: bool | None, chosen: tuple[int, ...], tmp_path: Path
) -> None:
    folders = [write(tmp_path, seed, metric, value) for seed, value in values.items()]
    out = average_weights(folders, count=2, greater_is_better=greater, out=tmp_path / "soup")
    check_mean(out, chosen)
    config = json.loads((out / "config.json").read_text())
    assert config["averaged"]["metric"] == metric.removeprefix("ema_model_")
    assert not {"best", "greater_is_better"} & config.keys()


@pytest.mark.parametrize("greater", [None, False])
def test_a_greedy_soup_keeps_what_makes_it_no_worse(greater: bool | None, tmp_path: Path) -> None:
    folders = [write(tmp_path, seed) for seed in (1, 2, 3)]
    weights = {seed: model(seed).fc.weight.double() for seed in (1, 2, 3)}
    target = (weights[2] + weights[3]).float() / 2
    sign = -1 if greater is None else 1
    seen = []

    def evaluate(candidate: Any) -> float:
        assert not candidate.training
        seen.append(candidate)
        return sign * (candidate.fc.weight - target).square().sum().item()

    out = average_weights(folders, method="greedy", evaluate=evaluate, greater_is_better=greater, out=tmp_path / "soup")
    check_mean(out, (2, 3))
    assert len(seen) == 5  # each alone, then two additions
    assert json.loads((out / "config.json").read_text())["averaged"]["method"] == "greedy"


@pytest.mark.parametrize("averaged", [False, True])
def test_states_are_averaged_by_the_metrics_of_their_history(averaged: bool, tmp_path: Path) -> None:
    kind = type("Run", (ClassificationMetricsMixin, *((ModelEmaMixin,) if averaged else ())), {})
    for seed in (1, 2):
        trainer = make_trainer(
            kind,
            timm.create_model("test_resnet", num_classes=3),
            num_classes=3,
            seed=seed,
            callbacks=[SaveBestCallback(), SaveStateCallback],
            run_dir=tmp_path / f"{seed}",
            **({"ema_decay": 0.3} if averaged else {}),
        )
        fit(trainer, tiny_data(), tiny_data(6))
    states = [state_folders(tmp_path / f"{seed}" / "state")[0] for seed in (1, 2)]
    commons = [torch.load(state / "common.pt", weights_only=True) for state in states]
    heads = [
        common["components"]["ema_model"]["module.fc.weight"] if averaged else common["model"]["fc.weight"]
        for common in commons
    ]
    out = average_weights(states, metric="eval_loss_epoch", count=2, out=tmp_path / "soup")
    assert torch.allclose(open_classifier(out)[0].fc.weight, (heads[0] + heads[1]) / 2)
    name = "ema_model_eval_loss_epoch" if averaged else "eval_loss_epoch"
    losses = [common["history"]["metrics"][name][-1] for common in commons]
    if averaged:  # the model's own losses say the opposite
        for state, common, loss in zip(states, commons, losses, strict=True):
            common["history"]["metrics"]["eval_loss_epoch"][-1] = -loss
            torch.save(common, state / "common.pt")
            sign_again(state)
    one = average_weights(states, metric="eval_loss_epoch", count=1, out=tmp_path / "one")
    assert torch.equal(open_classifier(one)[0].fc.weight, heads[losses.index(min(losses))])
    for folder in ("best", "best_ema"):
        (tmp_path / "2" / folder / "config.json").unlink(missing_ok=True)
    with refused(FileNotFoundError, str(states[1]), "best/config.json"):
        average_weights(states, out=tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "gredy"}, ("method", "'gredy'", "Did you mean 'greedy'")),
        ({"method": "greedy"}, ("evaluate", "None", "'greedy'")),
        ({"evaluate": float}, ("evaluate", "'uniform'")),
        ({"count": 3}, ("count", "2", "3")),
        ({"count": 0}, ("count", "0")),
        ({"count": 1, "metric": "acuracy"}, ("metric", "'acuracy'", "Did you mean 'accuracy'")),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    folders = [write(tmp_path, seed, "accuracy", 0.5) for seed in (1, 2)]
    before = contents(tmp_path)
    with refused(ValueError, "Expected", *words):
        average_weights(folders, out=tmp_path / "soup", **options)
    assert contents(tmp_path) == before


def test_weights_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path, 1, "accuracy", 0.5)
    out = tmp_path / "soup"
    with refused(ValueError, "at least two"):
        average_weights([first], out=out)
    with refused(ValueError, "at least two", "run1"):
        average_weights(str(first), out=out)  # type: ignore[arg-type]
    for name, other, words in (
        ("arch", timm.create_model("test_vit", num_classes=3), ("architecture", "test_resnet", "test_vit")),
        ("classes", model(num_classes=4), ("num_classes", "3", "4")),
        ("shapes", model(stem_width=8), ("same tensors", "'bn1.bias' and 21 others")),
    ):
        save_classifier(other, tmp_path / name, None if name == "classes" else ["a", "b", "c"])
        with refused(ValueError, "Expected folders", *words):
            average_weights([first, tmp_path / name], out=out)
    save_classifier(model(), tmp_path / "names", ["a", "c", "b"])
    with refused(ValueError, "label_names", "['a', 'b', 'c']", "['a', 'c', 'b']"):
        average_weights([first, tmp_path / "names"], out=out)
    for key, value, shown in (
        ("crop_pct", 0.5, "0.95"),
        ("mean", [0.1, 0.2, 0.3], "[0.5, 0.5, 0.5]"),
        ("std", [0.1, 0.2, 0.3], "[0.5, 0.5, 0.5]"),
        ("input_size", [3, 64, 64], "[3, 160, 160]"),
        ("interpolation", "nearest", "'bilinear'"),
        ("crop_mode", "squash", "'center'"),
    ):
        save_classifier(model(), tmp_path / key, ["a", "b", "c"], {key: value})
        with refused(ValueError, "Expected folders of one model", f"with {key} {shown} and", key, value, "data config"):
            average_weights([first, tmp_path / key], out=out)
    save_classifier(model(), tmp_path / "several", ["a", "b", "c"], multi_label=True)
    with refused(ValueError, "multi_label None and", "with True"):
        average_weights([first, tmp_path / "several"], out=out)
    with refused(ValueError, "accuracy", "finite", "nan", "run2"):
        average_weights([first, write(tmp_path, 2, "accuracy", float("nan"))], count=1, out=out)
    with refused(ValueError, "metric", "run3"):
        average_weights([first, write(tmp_path, 3)], count=1, out=out)
    with refused(ValueError, "the file", "model.safetensors", "Name its folder"):
        average_weights([first, first / "model.safetensors"], out=out)
    with refused(FileExistsError, "out", "run1"):
        average_weights([first, first], out=first)
    assert not out.exists()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write(tmp_path, seed) for seed in (1, 2)]
    before = contents(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="No space"):
        average_weights(folders, out=tmp_path / "soup")
    assert contents(tmp_path) == before

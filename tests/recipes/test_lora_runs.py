"""Runs that train adapters: they resume with the same bits, and what they leave is plain models."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import write_images
from refusal import refused
from safetensors.torch import load_file
from tiny_runs import differences, exact_and_rounding, parse_recipe

from timm_accel.export import export, export_program, export_torchscript
from timm_accel.features import extract_embeddings
from timm_accel.model_soup import average_weights
from timm_accel.models import create_classifier, merge_lora, open_classifier
from timm_accel.models import lora as module_of_lora
from timm_accel.predict import evaluate_classifier, load_classifier
from timm_accel.recipes import Recipe, build_run
from timm_accel.sharing import export_package
from timm_accel.states.folder import open_state, state_folders

pytest.importorskip("peft")

SIZE, EPOCHS = 32, 2
OPTIONS: dict[str, Any] = {
    "model": "test_vit",
    "lora": {"r": 4, "lora_dropout": 0.1},
    "image_size": SIZE,
    "num_epochs": EPOCHS,
    "batch_size": 4,
    "num_workers": 0,
    "mixup": 0.2,
    "cutmix": 1.0,
    "layer_decay": 0.8,
    "grad_checkpointing": True,
    "drop_path_rate": 0.1,
    "warmup_epochs": 0,
    "val_fraction": 0.3,
    "clip_grad": 1.0,
    "save_every_n_updates": 1,
    "keep_states": 100,
    "keep_states_when_done": 100,
}


def trained(folder: Path, name: str, **options: Any) -> Any:
    run = build_run(Recipe(**{**OPTIONS, "data_dir": str(folder / "images"), "run_dir": str(folder / name), **options}))
    run.train()
    return run.trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lora")
    write_images(root / "images", {"cat": 9, "dog": 9, "owl": 9}, size=SIZE)
    return root


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Any:
    return trained(folder, "run")


def common(state: Path) -> dict[str, Any]:
    return open_state(state).load("common.pt")


def test_only_adapters_and_classifier_change_and_the_ema_weights_follow(folder: Path, trainer: Any) -> None:
    first, *_, last = (common(state) for state in sorted(state_folders(folder / "run" / "state")))
    changed = {name for name, tensor in last["model"].items() if not torch.equal(tensor, first["model"][name])}
    of_model = dict(trainer.model.named_parameters())
    assert changed == {name for name, parameter in of_model.items() if parameter.requires_grad}
    assert all(name.startswith("head.") or ".lora_" in name for name in changed)
    ema = {name.removeprefix("module."): tensor for name, tensor in last["components"]["ema_model"].items()}
    assert {name for name in ema if torch.equal(ema[name], last["model"][name])} == ema.keys() - changed
    frozen = "blocks.0.attn.qkv.base_layer.weight"
    assert ema[frozen].data_ptr() == last["model"][frozen].data_ptr()  # the state has it once
    assert trainer.ema_model.module.get_parameter(frozen).data_ptr() != of_model[frozen].data_ptr()  # after the run


def test_a_run_resumes_anywhere_with_the_same_bits(folder: Path, trainer: Any) -> None:
    states = sorted(state_folders(folder / "run" / "state"))
    for number, state in enumerate((states[1], states[5])):
        copied = folder / f"resumed{number}"
        shutil.copytree(state, copied / "state" / state.name)
        resumed = trained(folder, copied.name, resume="auto")
        found = differences(common(states[-1]), common(sorted(state_folders(copied / "state"))[-1]))
        assert not [where for where in found if "SaveBestCallback" not in where]  # best/ was not copied
        assert not differences(trainer.model.state_dict(), resumed.model.state_dict())
    for name in ("best", "best_ema"):
        ours, theirs = (load_file(folder / run / name / "model.safetensors") for run in ("run", "resumed0"))
        assert not differences(ours, theirs)


def test_a_state_of_other_adapters_is_refused(folder: Path, trainer: Any) -> None:
    shutil.copytree(folder / "run" / "state", folder / "other" / "state")
    for lora, words in (({"r": 4}, "recipe.lora"), (8, "tensors"), (None, "tensors")):
        with refused(ValueError, "of another run", words):
            trained(folder, "other", resume="auto", lora=lora)


def test_what_a_run_leaves_is_a_plain_model(folder: Path, trainer: Any) -> None:
    images = torch.stack([image for image, _ in trainer.eval_dataset])
    weights = {"best": trainer.model, "best_ema": trainer.ema_model.module}
    for name, model in weights.items():
        opened, about = open_classifier(folder / "run" / name)
        alone = timm.create_model(f"local-dir:{folder / 'run' / name}", pretrained=True)
        assert not differences(alone.state_dict(), opened.state_dict())
        assert alone.state_dict().keys() == timm.create_model("test_vit", num_classes=3).state_dict().keys()
        same = torch.allclose(opened(images), model.eval()(images), atol=1e-5)
        assert same == (about["best"]["epoch"] == EPOCHS)


def test_evaluation_prediction_and_embeddings_are_those_of_the_merged_weights(folder: Path, trainer: Any) -> None:
    _, about = open_classifier(folder / "run" / "best")
    found = evaluate_classifier(folder / "run" / "best", trainer.eval_dataset, num_workers=0)
    recorded = trainer.run_history.get_metric_values("accuracy")[about["best"]["epoch"] - 1]
    assert found.metrics["accuracy"] == pytest.approx(recorded)
    live = evaluate_classifier(trainer.model, trainer.eval_dataset, num_workers=0)
    assert live.metrics["accuracy"] == pytest.approx(trainer.run_history.get_latest_metric("accuracy"))
    classifier = load_classifier(folder / "run")
    assert len(classifier.predict([str(path) for path in sorted((folder / "images" / "cat").iterdir())[:3]])) == 3
    vectors = [
        extract_embeddings(model, trainer.eval_dataset, num_workers=0).features
        for model in (trainer.model, merge_lora(deepcopy(trainer.model)))
    ]
    assert vectors[0].shape[1] == 64
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-4)


def adapted_at(folder: Path, weights: str) -> torch.nn.Module:
    """The adapted model with the best weights of the run, from the last state of their epoch."""
    epoch = open_classifier(folder / "run" / weights)[1]["best"]["epoch"]
    states = [each for each in sorted(state_folders(folder / "run" / "state")) if f"_epoch_{epoch - 1}_" in each.name]
    state = common(states[-1])
    stored = {"best": state["model"], "best_ema": state["components"]["ema_model"]}[weights]
    model, _ = create_classifier("test_vit", 3, lora=OPTIONS["lora"], image_size=SIZE)
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    return model


@pytest.mark.parametrize("weights", ["best", "best_ema"])
def test_exported_best_weights_give_what_the_adapted_model_gave(folder: Path, trainer: Any, weights: str) -> None:
    images = torch.stack([image for image, _ in trainer.eval_dataset])
    exact, rounding = exact_and_rounding(adapted_at(folder, weights), images)
    for file in ("best.onnx", "best.pt"):
        export(folder / "run" / weights, folder / file)
        found = torch.as_tensor(load_classifier(folder / file).run(images))
        assert float((found - exact).abs().max()) <= 10 * rounding  # merging rounds each weight once more


@torch.no_grad()
def test_adapters_are_merged_in_every_exported_file(folder: Path, trainer: Any) -> None:
    before, images = deepcopy(trainer.model.state_dict()), torch.rand(2, 3, SIZE, SIZE)
    expected = trainer.model.eval()(images)
    for write, file in ((export_torchscript, "model.pt"), (export_program, "model.pt2")):
        write(trainer.model, folder / file)
        assert torch.allclose(torch.as_tensor(load_classifier(folder / file).run(images)), expected, atol=1e-4)
    export_package(folder / "run", folder / "package")
    assert (folder / "package" / "model.safetensors").read_bytes() in [
        (folder / "run" / name / "model.safetensors").read_bytes() for name in ("best", "best_ema")
    ]
    assert not differences(before, trainer.model.state_dict())


def test_the_weights_of_a_run_are_averaged_and_trained_further_but_not_those_of_its_states(
    folder: Path, trainer: Any
) -> None:
    best, best_ema = (load_file(folder / "run" / name / "model.safetensors") for name in ("best", "best_ema"))
    average_weights([folder / "run" / "best", folder / "run" / "best_ema"], out=folder / "soup")
    soup = load_file(folder / "soup" / "model.safetensors")
    assert all(torch.allclose(soup[name], (best[name] + best_ema[name]) / 2, atol=1e-6) for name in best)
    names = ["cat", "dog", "owl"]
    for lora in (None, 8):
        model, _ = create_classifier("test_vit", 3, weights=folder / "run", class_names=names, lora=lora)
        assert model.weights_report.exact
        assert torch.equal(
            merge_lora(model).get_parameter("blocks.0.attn.qkv.weight"), best_ema["blocks.0.attn.qkv.weight"]
        )
    state = sorted(state_folders(folder / "run" / "state"))[-1]
    with refused(ValueError, "weights to be those of a model", state.name, "adapters (lora)", "Name best or best_ema"):
        create_classifier("test_vit", 3, weights=state)


def test_lost_best_weights_are_merged_again_from_a_state(folder: Path, trainer: Any) -> None:
    shutil.copytree(folder / "run", folder / "lost", ignore=shutil.ignore_patterns("lock*"))
    kept = load_file(folder / "lost" / "best" / "model.safetensors")
    shutil.rmtree(folder / "lost" / "best")
    trained(folder, "lost", resume="auto")
    assert not differences(load_file(folder / "lost" / "best" / "model.safetensors"), kept)


def test_a_dry_run_tells_how_many_parameters_are_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = create_classifier("test_vit", 3, lora=8, image_size=SIZE)
    total = sum(each.numel() for each in model.parameters())
    count = sum(8 * sum(layer) for layer in [(64, 192), (64, 64), (64, 192), (192, 64)] * 6) + 64 * 3 + 3
    words = [f"--{name}={value}" for name, value in OPTIONS.items() if name not in ("lora", "clip_grad")]
    recipe = parse_recipe(
        [*words, "--lora", "8", "--data_dir", str(folder / "images"), "--run_dir", str(folder / "dry")]
    )
    build_run(recipe).dry_run()
    assert f"test_vit, {total:,} parameters, {count:,} trained" in capsys.readouterr().out
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("words", "lora"),
    [
        (["--lora", "8"], 8),
        (["--lora={r: 4, lora_alpha: 16}"], {"r": 4, "lora_alpha": 16}),
        (["--lora.r", "4"], {"r": 4}),
    ],
)
def test_the_command_line_takes_a_rank_or_arguments(words: list[str], lora: Any) -> None:
    assert parse_recipe(["--model", "test_vit", *words]).lora == lora


def test_options_of_adapters_are_checked_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for lora in (0, "many", [8], {"r": 0}):
        with refused(ValueError, "lora to be", f"got {lora!r}"):
            Recipe(lora=lora)
    with refused(ValueError, "freeze_epochs to be 0 with lora", "got 1"):
        Recipe(lora=8, freeze_epochs=1)
    monkeypatch.setattr(module_of_lora, "find_spec", lambda name: None)
    recipe = Recipe(lora=8, data_dir="/nowhere")
    with refused(ModuleNotFoundError, "package peft", "timm_accel[lora]"):
        build_run(recipe)

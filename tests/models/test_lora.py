"""Adapters by peft: what they compute, what is trained, and that every file holds a plain model."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from refusal import refused
from timm.layers import set_reentrant_ckpt
from timm.utils import ModelEmaV3
from tiny_runs import fit, make_trainer, same_weights
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import TensorDataset

from timm_accel import create_classifier
from timm_accel.mixins import FreezingMixin
from timm_accel.models import lora as module_of_lora
from timm_accel.models import merge_lora, open_classifier, save_classifier
from timm_accel.models.ema import share_frozen
from timm_accel.models.lora import require_peft
from timm_accel.optim import create_optimizer

pytest.importorskip("peft")

SIZE = 32
BEIT = {"name": "beit_base_patch16_224", "num_classes": 3, "depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 4}


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    names = (name.removesuffix(".base_layer") for name, _ in model.named_modules() if name.endswith(".base_layer"))
    return {name: model.get_submodule(name) for name in names}


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def moved(name: str = "test_vit", lora: Any = 4, **options: Any) -> Any:
    """A model whose adapters have an effect, in evaluation mode."""
    torch.manual_seed(0)
    model, _ = create_classifier(name, 3, lora=lora, **options)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def images(count: int = 4, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
@pytest.mark.parametrize(
    ("lora", "scale"),
    [(4, 8 / 4), ({"r": 4, "lora_alpha": 2}, 2 / 4), ({"r": 4, "use_rslora": True}, 8 / 2), ({"lora_alpha": 4}, 4 / 8)],
)
def test_an_adapted_layer_adds_a_product_of_two_small_matrices(lora: Any, scale: float) -> None:
    model = moved(lora=lora, image_size=SIZE)
    layer, rank = model.get_submodule("blocks.1.mlp.fc1"), 4 if lora == 4 else lora.get("r", 8)
    a, b, frozen = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer
    assert (a.shape, b.shape) == ((rank, 64), (192, rank))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    expected = x @ frozen.weight.T + frozen.bias + scale * (x @ a.T @ b.T)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    weight = frozen.weight + scale * (b @ a)
    assert torch.allclose(merge_lora(model).get_submodule("blocks.1.mlp.fc1").weight, weight, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [("test_vit", {}), ("test_convnext", {"ls_init_value": 1.0}), ("test_resnet", {}), ("test_efficientnet", {})],
)
def test_outputs_are_those_of_the_plain_model_at_first_and_the_same_when_merged(name: str, options: Any) -> None:
    torch.manual_seed(0)
    plain, plain_config = create_classifier(name, 3, image_size=64, **options)
    torch.manual_seed(0)
    model, config = create_classifier(name, 3, image_size=64, lora=4, **options)
    assert config == plain_config
    assert torch.equal(model.eval()(images(size=64)), plain.eval()(images(size=64)))
    model = moved(name, image_size=64, **options)
    before, kept = model(images(size=64)), deepcopy(model)
    merged = merge_lora(deepcopy(model))
    assert same_weights(model, kept)
    assert not torch.allclose(before, plain(images(size=64)), atol=1e-4)
    assert torch.allclose(merged(images(size=64)), before, atol=1e-5)
    assert type(merged) is type(plain)
    assert [*merged.state_dict()] == [*plain.state_dict()]
    assert trained(merged) == trained(plain)
    assert all(each.training for each in merged.train().modules())
    assert merge_lora(plain) is plain


@pytest.mark.parametrize(("name", "head"), [("test_vit", "head"), ("test_convnext", "head.fc"), ("test_vit2", "head")])
def test_all_linear_layers_are_adapted_but_the_classifier_which_is_trained(name: str, head: str) -> None:
    model, _ = create_classifier(name, 3, lora=4)
    plain, _ = create_classifier(name, 3)
    linear = {path for path, layer in plain.named_modules() if type(layer) is nn.Linear}
    assert adapted(model).keys() == linear - {head}
    assert [path for path in trained(model) if ".lora_" not in path] == [f"{head}.weight", f"{head}.bias"]


def test_convolutions_are_adapted_where_they_hold_most_weights() -> None:
    model, _ = create_classifier("test_resnet", 3, lora=4, head="mlp")
    assert {type(layer.base_layer) for layer in adapted(model).values()} == {nn.Conv2d}
    assert {path.split(".")[0] for path in trained(model) if ".lora_" not in path} == {"fc"}
    norms = {path for path, each in model.train().named_modules() if isinstance(each, _BatchNorm) and each.training}
    assert norms == {"fc.0", "fc.3"}  # the frozen ones keep their statistics
    grouped, _ = create_classifier("test_efficientnet", 3, lora=4)
    assert {layer.base_layer.groups for layer in adapted(grouped).values()} == {1}


def test_layers_that_an_adapter_would_not_reach_are_left_out_or_refused() -> None:
    model, _ = create_classifier(**BEIT, lora=4)  # BEiT uses the weights of qkv without calling it
    assert [*adapted(model)] == ["blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    with refused(ValueError, "linear layers and conv", "'blocks.0.attn.qkv' (Linear)", "Choose among", "proj, fc1"):
        create_classifier(**BEIT, lora={"r": 4, "target_modules": ["qkv"]})
    with refused(ValueError, "neither grouped", "(Conv2d)"):
        create_classifier("test_efficientnet", 3, lora={"r": 384, "target_modules": ["conv_dw"]})
    with refused(ValueError, "of another kind", "(ScaledStdConv2d)"):  # it normalizes its weights
        create_classifier("test_nfnet", 3, lora={"r": 4, "target_modules": "stem.*conv1"})


def test_layers_smaller_than_the_rank_are_left_out_or_refused() -> None:
    wide, _ = create_classifier("test_vit", 3, lora=64)
    assert len(adapted(wide)) == 24
    narrow, _ = create_classifier("test_efficientnet", 3, lora=20)
    smallest = min(min(each.base_layer.weight.flatten(1).shape) for each in adapted(narrow).values())
    assert smallest >= 20
    assert len(adapted(narrow)) < len(adapted(create_classifier("test_efficientnet", 3, lora=4)[0]))
    with refused(ValueError, "rank of lora to be at most 64", "test_vit, but got 65", "smaller"):
        create_classifier("test_vit", 3, lora=65)
    with refused(ValueError, "rank of lora to be at most 64, the width of 'blocks.0.mlp.fc1', but got 100"):
        create_classifier("test_vit", 3, lora={"r": 100, "target_modules": ["fc1"]})


@pytest.mark.parametrize("lora", [0, -1, True, 2.5, "8", [4], {"r": 0}, {"r": None}, {"r": "8"}])
def test_what_is_no_rank_is_refused(lora: Any) -> None:
    with refused(ValueError, "lora to be a rank of at least 1, or arguments of peft.LoraConfig", f"got {lora!r}"):
        create_classifier("test_vit", 3, lora=lora)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"target_modules": ["qvk"]}, ["target_modules of lora", "test_vit", "'qvk'", "Did you mean 'qkv'?"]),
        ({"target_modules": ["fc1", "fc3"]}, ["target_modules of lora", "'fc3'", "Did you mean 'fc"]),
        ({"target_modules": r"blocks\.9.*"}, ["fit test_vit", "No modules were targeted", "Its layers are", "qkv"]),
        ({"target_modules": ["head"]}, ["target_modules of lora", "without the classifier", "'head'"]),
        ({"lora_alhpa": 8}, ["arguments of peft.LoraConfig", "'lora_alhpa'", "Did you mean 'lora_alpha'"]),
        ({"modules_to_save": ["norm"]}, ["lora without 'modules_to_save'", "got ['norm']", "Leave it out"]),
        ({"lora_dropout": "much"}, ["fit test_vit", "'lora_dropout': 'much'"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(lora: Any, words: list[str]) -> None:
    with refused(ValueError, *words):
        create_classifier("test_vit", 3, lora={"r": 4, **lora})


def test_what_does_not_go_together_with_adapters_is_refused() -> None:
    with refused(ValueError, "freeze to be 0 with lora", "got -1", "Leave one"):
        create_classifier("test_vit", 3, lora=4, freeze=-1)
    set_reentrant_ckpt(True)
    try:
        with refused(ValueError, "not to be reentrant with lora", "no gradient", "TIMM_REENTRANT_CKPT"):
            create_classifier("test_vit", 3, lora=4, grad_checkpointing=True)
    finally:
        set_reentrant_ckpt(False)
    trainer = make_trainer(FreezingMixin, moved(image_size=SIZE), freeze_schedule={0: -1, 1: 0})
    with refused(ValueError, "thaws to be trainable", "Leave freeze and lora out"):
        fit(trainer, TensorDataset(images(), torch.arange(4) % 3))


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_lora, "find_spec", lambda name: None)
    for work in (require_peft, lambda: create_classifier("test_vit", 3, lora=4)):
        with refused(ModuleNotFoundError, "package peft to be installed", "pip install 'timm_accel[lora]'"):
            work()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_only_adapters_and_the_classifier_are_trained_and_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = moved(name, grad_checkpointing=checkpointing, image_size=64)
        optimizer = create_optimizer(model, "adamw", lr=1e-2, weight_decay=0.05)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained(model))
        before = deepcopy(model.state_dict())
        model.train()(images(size=64)).square().sum().backward()
        gradients.append({path: each.grad for path, each in model.named_parameters() if each.grad is not None})
        optimizer.step()
        changed = {path for path, tensor in model.state_dict().items() if not torch.equal(tensor, before[path])}
        assert changed == set(trained(model)) == gradients[-1].keys()
    assert all(torch.allclose(first, gradients[1][path], atol=1e-6) for path, first in gradients[0].items())


def test_layers_have_the_learning_rates_of_their_depth() -> None:
    model, _ = create_classifier("test_vit", 3, lora=4)
    groups = create_optimizer(model, "adamw", lr=1.0, layer_decay=0.5).param_groups
    scales = {id(each): group["lr_scale"] for group in groups for each in group["params"]}
    found = {path: scales[id(each)] for path, each in model.named_parameters() if each.requires_grad}
    for path, scale in found.items():
        depth = int(path.split(".")[1]) if path.startswith("blocks") else 6
        assert scale == 0.5 ** (6 - depth)


@torch.no_grad()
def test_a_saved_model_is_merged_and_loads_without_peft(tmp_path: Any) -> None:
    model = moved(image_size=SIZE, head="mlp")
    kept = deepcopy(model)
    save_classifier(model, tmp_path / "saved", ["a", "b", "c"])
    assert same_weights(model, kept)
    opened, config = open_classifier(tmp_path / "saved")
    assert (config["head"], config["label_names"]) == ("mlp", ["a", "b", "c"])
    assert torch.allclose(opened(images()), model(images()), atol=1e-5)
    again, _ = create_classifier("test_vit", 3, weights=tmp_path / "saved", head="mlp", image_size=SIZE, lora=2)
    assert again.weights_report.exact
    assert torch.allclose(again.eval()(images()), model(images()), atol=1e-5)


def test_adapters_train_a_second_time_over_merged_ones() -> None:
    model = merge_lora(moved(image_size=SIZE))
    module_of_lora.add_lora(model, 2, (3, SIZE, SIZE))
    assert {layer.lora_A["default"].out_features for layer in adapted(model).values()} == {2}
    assert functional.mse_loss(model(images()), moved(image_size=SIZE)(images())) < 1e-10


@torch.no_grad()
def test_merging_leaves_an_ema_model_that_shares_frozen_weights() -> None:
    model = moved(image_size=SIZE)
    ema_model = ModelEmaV3(model)
    share_frozen(ema_model, model, create_optimizer(model, "sgd", lr=0.1))
    frozen = "blocks.0.attn.qkv.base_layer.weight"
    assert ema_model.module.get_parameter(frozen).data_ptr() == model.get_parameter(frozen).data_ptr()
    before = ema_model.module(images())
    merge_lora(model)
    assert torch.equal(ema_model.module(images()), before)

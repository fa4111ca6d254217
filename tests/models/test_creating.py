"""The model builder: what it builds, and what it refuses."""

from collections.abc import Callable

import pytest
import timm
import torch
from refusal import refused
from timm.layers import is_exportable, is_scriptable
from torch import nn

from timm_accel.models import create_classifier
from timm_accel.models.building import pooling_kinds
from timm_accel.models.trial import create_on_meta, output_shape


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_classifier_takes_its_size_and_says_what_it_wants(name: str) -> None:
    model, config = create_classifier(name, 5, image_size=64, drop_path_rate=0.1)
    assert config["input_size"] == (3, 64, 64)
    assert len(config["mean"]) == len(config["std"]) == 3
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)


def test_a_model_of_fixed_size_is_built_for_the_size() -> None:
    model, _ = create_classifier("test_vit", 5, image_size=64)
    assert model.pos_embed.shape == (1, 16 + 1, 64)  # 4 by 4 patches and the class token
    assert model.pretrained_cfg["test_crop_pct"] is model.pretrained_cfg["test_input_size"] is None


def test_without_a_size_the_models_own_holds() -> None:
    assert create_classifier("test_resnet", 5)[1]["input_size"] == (3, 160, 160)


def test_a_new_model_trains_and_is_not_touched_by_the_trial() -> None:
    torch.manual_seed(3)
    model, _ = create_classifier("test_resnet", 5, image_size=64)
    torch.manual_seed(3)
    expected = timm.create_model("test_resnet", num_classes=5)
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_without_classes_the_model_gives_features(name: str) -> None:
    model, _ = create_classifier(name, 0, image_size=64)
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), model.forward_head(model.forward_features(images), pre_logits=True))
    assert model(images).shape == (2, model.num_features)


def test_without_pooling_the_features_are_maps() -> None:
    model, _ = create_classifier("test_resnet", 0, image_size=64, global_pool="")
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 96, 2, 2)


def test_options_reach_the_model() -> None:
    model, config = create_classifier(
        "test_vit", 3, image_size=(64, 32), in_chans=1, drop_rate=0.3, grad_checkpointing=True, scriptable=True
    )
    assert config["input_size"] == (1, 64, 32)
    assert model.head_drop.p == 0.3
    assert model.grad_checkpointing
    assert model(torch.randn(2, 1, 64, 32)).shape == (2, 3)
    assert not create_classifier("test_vit", 3)[0].grad_checkpointing


@pytest.mark.parametrize("option", ["scriptable", "exportable"])
def test_layers_for_export_are_asked_for_while_the_model_is_built(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entrypoint = timm.models._factory.model_entrypoint
    seen = []

    def noting(name: str) -> Callable[..., nn.Module]:
        def create(**options: object) -> nn.Module:
            seen.append((is_scriptable(), is_exportable()))
            return entrypoint(name)(**options)

        return create

    monkeypatch.setattr(timm.models._factory, "model_entrypoint", noting)
    create_classifier("test_resnet", 3, **{option: True})
    create_classifier("test_resnet", 3)
    assert seen == [(option == "scriptable", option == "exportable"), (False, False)]


def test_a_model_has_the_poolings_of_its_family() -> None:
    assert pooling_kinds("test_vit") == ["avg", "max", "avgmax", "token", "map", "prr"]
    assert pooling_kinds("test_resnet") == ["avg", "max", "avgmax", "catavgmax", "fastavg", "fastmax"]


@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", "catavgmax"])
def test_a_pooling_is_the_one_asked_for(kind: str) -> None:
    model, _ = create_classifier("test_resnet", 0, image_size=64, global_pool=kind)
    features = torch.rand(2, 96, 2, 2)
    mean, most = features.mean((2, 3)), features.amax((2, 3))
    expected = {"avg": mean, "max": most, "avgmax": (mean + most) / 2, "catavgmax": torch.cat([mean, most], 1)}
    assert torch.allclose(model.forward_head(features, pre_logits=True), expected[kind])


class Auxiliary(nn.Module):
    """Has another output in training, as some families have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if self.training else images[:, :1]


def test_a_model_on_meta_takes_no_memory() -> None:
    assert {parameter.device.type for parameter in create_on_meta("test_resnet", num_classes=3).parameters()} == {
        "meta"
    }


def test_the_trial_is_of_evaluation() -> None:
    assert output_shape(Auxiliary(), (3, 2, 2)) == (2, 1, 2, 2)


def test_the_trial_copies_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    monkeypatch.delattr(nn.Parameter, "__deepcopy__")
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", None)
    assert output_shape(model, (3, 2, 2)) == (2, 4)


def test_the_trial_gives_shapes_for_any_batch_and_puts_the_mode_back() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    assert output_shape(model, (3, 2, 2), batch_size=5) == (5, 4)
    assert not model.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 1}, ["num_classes to be at least 2, or 0", "but got 1"]),
        ({"num_classes": -2}, ["num_classes to be at least 2, or 0", "but got -2"]),
        ({"global_pool": ""}, ["global_pool to be other than ''", "num_classes=0 for feature maps"]),
        ({"global_pool": "avgmx"}, ["global_pool to be a kind of timm's", "'avgmx'", "'avgmax'"]),
        ({"global_pool": "token"}, ["global_pool to be one that test_resnet has", "'token'", "It has 'avg', 'max'"]),
        (
            {"name": "test_vit", "global_pool": "catavgmax"},
            ["global_pool to be one that test_vit has", "catavgmax", "It has", "'map'"],
        ),
        (
            {"name": "inception_v3", "image_size": 32},
            ["image_size to be one that inception_v3", "(32, 32)", "(299, 299)"],
        ),
        ({"name": "test_vit", "image_size": 8}, ["image_size to be one that test_vit", "(8, 8)", "(160, 160)"]),
        ({"name": "vgg11", "grad_checkpointing": True}, ["grad_checkpointing to be False for vgg11"]),
        ({"name": "test_rsnet"}, ["model to be a name of timm", "'test_rsnet'", "Did you mean 'test_resnet'"]),
        ({"name": "test_resnet.none"}, ["model to be a name of timm", "'test_resnet.none'"]),
        ({"name": "test_vit", "patch_size": 0}, ["arguments that test_vit can be built with", "'patch_size': 0"]),
        ({"pretrained": True, "weights": "a"}, ["weights to be None with pretrained=True", "Leave out one"]),
    ],
)
def test_what_a_family_lacks_is_refused_at_creation(options: dict[str, object], words: list[str]) -> None:
    with refused(ValueError, *words):
        create_classifier(**{"name": "test_resnet", "num_classes": 3, **options})


def test_an_argument_that_a_model_lacks_is_named() -> None:
    with pytest.raises(TypeError, match=r"arguments that vgg11 takes, but got .*drop_path_rate.*Leave out"):
        create_classifier("vgg11", 3, drop_path_rate=0.1)


def test_a_model_without_a_choice_of_pooling_says_so() -> None:
    with refused(ValueError, "global_pool to be one that levit_128s has", "'max'", "It has 'avg'"):
        create_classifier("levit_128s", 3, global_pool="max")

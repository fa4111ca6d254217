"""Custom heads: where they go, and what is refused."""

from pathlib import Path

import pytest
import timm
import torch
from refusal import refused
from safetensors.torch import load_file
from torch import nn

from timm_accel.models import MlpHead, create_classifier, open_classifier, save_classifier

CLASSIFIERS = {"test_resnet": "fc", "test_vit": "head", "test_efficientnet": "classifier", "test_convnext": "head.fc"}


def cosine(in_features: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(in_features), nn.Linear(in_features, num_classes, bias=False))


def test_the_mlp_head_is_the_articles() -> None:
    head = MlpHead(7, 3).eval()
    first, second = head[0], head[3]
    nn.init.normal_(first.running_mean), nn.init.normal_(second.running_mean)
    features = torch.randn(4, 7)
    hidden = ((features - first.running_mean) / (1 + 1e-5) ** 0.5) @ head[1].weight.T
    hidden = (hidden.relu() - second.running_mean) / (1 + 1e-5) ** 0.5
    assert torch.allclose(head(features), hidden @ head[5].weight.T, atol=1e-6)
    assert head[4].p == 0.4
    assert sorted(dict(head.named_parameters())) == ["0.bias", "0.weight", "1.weight", "3.bias", "3.weight", "5.weight"]
    assert head[1].weight.shape == (256, 7)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_head_goes_where_the_classifier_is(name: str) -> None:
    model, _ = create_classifier(name, 5, image_size=64, head="mlp")
    assert isinstance(model.get_submodule(CLASSIFIERS[name]), MlpHead)
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.equal(model(images), model.get_submodule(CLASSIFIERS[name])(features))


@pytest.mark.parametrize("head", ["mlp", cosine])
def test_a_head_follows_the_doubled_features_of_catavgmax(head: object) -> None:
    model, _ = create_classifier("test_resnet", 5, image_size=64, head=head, global_pool="catavgmax")
    assert model.fc[0].weight.shape == (192,)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_a_module_is_taken_as_it_is() -> None:
    head = nn.Linear(96, 5)
    assert create_classifier("test_resnet", 5, head=head)[0].fc is head


def test_a_head_can_be_reset_by_timm() -> None:
    model, _ = create_classifier("test_resnet", 5, image_size=64, head="mlp")
    model.reset_classifier(7)
    assert type(model.fc) is nn.Linear
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 96)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "mpl"}, ["head to be 'linear', 'mlp', a function", "'mpl'", "Did you mean 'mlp'"]),
        ({"head": "mlp", "num_classes": 0}, ["head to be 'linear' with num_classes=0", "'mlp'"]),
        (
            {"head": "mlp", "name": "levit_128s"},
            ["head to be 'linear' for levit_128s", "Linear (head.linear) and Linear"],
        ),
        ({"head": "mlp", "name": "dla46x_c"}, ["head to be 'linear' for dla46x_c", "Conv2d (fc)", "keep timm's"]),
        ({"head": lambda width, _: nn.Linear(width, 4)}, ["head to return (B, num_classes), (2, 3)", "got (2, 4)"]),
        ({"head": nn.Identity()}, ["head to return (B, num_classes), (2, 3)", "got (2, 96)"]),
        ({"head": nn.Linear(5, 3)}, ["head to take features (B, 96)", "raised RuntimeError"]),
    ],
)
def test_a_head_that_does_not_fit_is_refused_at_creation(options: dict[str, object], words: list[str]) -> None:
    with refused(ValueError, *words):
        create_classifier(**{"name": "test_resnet", "num_classes": 3, **options})


@pytest.mark.parametrize(
    ("head", "words"), [(3, "a module, but got int"), (lambda *_: 3, "a module for (in_features, num_")]
)
def test_a_head_that_is_no_module_is_refused(head: object, words: str) -> None:
    with refused(TypeError, words):
        create_classifier("test_resnet", 3, head=head)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_saved_mlp_head_is_rebuilt_and_timm_alone_has_the_features(name: str, tmp_path: Path) -> None:
    model, config = create_classifier(name, 3, image_size=64, in_chans=1, head="mlp")
    images = torch.randn(4, 1, 64, 64)
    model(images)  # running statistics that are not those of a new head
    save_classifier(model, tmp_path, ["a", "b", "c"])
    opened, about = open_classifier(tmp_path)
    model.eval()
    assert torch.equal(opened(images), model(images))
    assert not any(module.training for module in opened.modules())
    assert (about["head"], about["label_names"], about["num_classes"]) == ("mlp", ["a", "b", "c"], 3)
    assert tuple(about["pretrained_cfg"]["mean"]) == tuple(config["mean"])
    assert about["note"].startswith("timm cannot rebuild the head")
    backbone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.equal(backbone(images), features)


@pytest.mark.parametrize(
    ("name", "kind"), [("test_resnet", "catavgmax"), ("test_vit", "map"), ("test_convnext", "max")]
)
def test_a_rebuilt_model_has_the_pooling_it_was_made_with(name: str, kind: str, tmp_path: Path) -> None:
    model, _ = create_classifier(name, 3, image_size=64, global_pool=kind, head="mlp")
    save_classifier(model, tmp_path)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(open_classifier(tmp_path)[0](images), model.eval()(images))


def test_a_linear_head_is_called_so(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    save_classifier(model, tmp_path)
    opened, about = open_classifier(tmp_path)
    assert about["head"] == "linear"
    assert "note" not in about
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(opened(images), model.eval()(images))


def test_a_head_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32, head=cosine)
    save_classifier(model, tmp_path)
    with refused(ValueError, "head to be the function or module that made the head", "got None", "head=…"):
        open_classifier(tmp_path)
    opened, about = open_classifier(tmp_path, head=cosine)
    assert about["head"] == "custom"
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(opened(images), model.eval()(images))
    with refused(ValueError, "head to fit the weights in", "got another", "Missing key"):
        open_classifier(tmp_path, head=nn.Linear)


def test_a_head_that_is_put_in_afterwards_is_named_too(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    model.fc = MlpHead(96, 3)
    save_classifier(model, tmp_path)
    assert open_classifier(tmp_path)[1]["head"] == "mlp"


def test_a_changed_body_cannot_be_opened(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    model.layer4 = nn.Conv2d(192, 96, 1)
    save_classifier(model, tmp_path)
    with refused(ValueError, "parts of the model, which were replaced, to fit the weights in"):
        open_classifier(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(missing: str, tmp_path: Path) -> None:
    save_classifier(create_classifier("test_resnet", 3)[0], tmp_path)
    (tmp_path / missing).unlink()
    with refused(FileNotFoundError, "folder to hold", f"without {missing}"):
        open_classifier(tmp_path)


def test_a_model_that_is_not_timms_cannot_be_opened(tmp_path: Path) -> None:
    save_classifier(nn.Linear(2, 2), tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"weight", "bias"}
    with refused(ValueError, "folder to hold a model of timm", "timm cannot rebuild Linear"):
        open_classifier(tmp_path)


def test_a_head_that_is_not_wanted_is_refused(tmp_path: Path) -> None:
    save_classifier(create_classifier("test_resnet", 3)[0], tmp_path)
    with refused(ValueError, "head to be None, since that of these weights is 'linear'", "'mlp'"):
        open_classifier(tmp_path, head="mlp")

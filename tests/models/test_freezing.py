"""Stages of a model, and what freezing them changes and leaves."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from refusal import refused
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from timm_accel.mixins import ModelEmaMixin
from timm_accel.models import create_classifier, freeze_stages, stage_names, stage_parameters


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", ["stem", "layer1", "layer2", "layer3", "layer4", "head"]),
        ("test_vit", ["stem", *(f"blocks.{number}" for number in range(6)), "head"]),
        ("test_convnext", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]),
    ],
)
def test_a_model_is_divided_from_stem_to_head(name: str, stages: list[str]) -> None:
    model, _ = create_classifier(name, 3)
    assert stage_names(model) == stages
    divided = [parameter for group in stage_parameters(model).values() for parameter in group]
    assert sorted(divided) == sorted(name for name, _ in model.named_parameters())


def test_tensors_at_the_root_belong_to_the_first_stage() -> None:
    assert {"cls_token", "pos_embed"} <= set(stage_parameters(create_classifier("test_vit", 3)[0])["stem"])

    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position, self.first, self.last = nn.Parameter(torch.zeros(2)), nn.Linear(2, 2), nn.Linear(2, 2)
            self.pretrained_cfg = {"classifier": "last"}

        def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
            return {"stem": r"^first"}

    assert stage_parameters(Rooted()) == {
        "stem": ["first.weight", "first.bias", "position"],
        "head": ["last.weight", "last.bias"],
    }


@pytest.mark.parametrize(("fails_on", "stages"), [((True,), ["stem", "head"]), ((True, False), ["first", "last"])])
def test_a_matcher_that_fails_leaves_a_finer_one_or_the_children(fails_on: tuple[bool], stages: list[str]) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
            self.pretrained_cfg = {"classifier": "last"}

        def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
            assert coarse not in fails_on, "coarse grouping is not implemented"
            return {"stem": r"^first"}

    assert stage_names(Failing()) == stages


def test_a_model_that_is_not_timms_has_its_children_for_stages() -> None:
    assert stage_parameters(tiny_model()) == {
        "0": ["0.weight", "0.bias"],
        "1": ["1.weight", "1.bias"],
        "5": ["5.weight", "5.bias"],
    }


@pytest.mark.parametrize("freeze", [2, ["layer1", "stem"]])
def test_frozen_stages_neither_learn_nor_change_their_statistics(freeze: Any) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32, freeze=freeze)
    before = deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"layer2", "layer3", "layer4", "fc"}
    assert set(dict(model.named_parameters())) == set(dict(create_classifier("test_resnet", 3)[0].named_parameters()))


@pytest.mark.parametrize(
    "copied",
    [
        lambda model: model,
        deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        convert_sync_batchnorm,
        lambda model: ModelEmaV3(model).module,
    ],
    ids=["itself", "copy", "pickle", "sync", "average"],
)
def test_frozen_batch_norms_stay_in_evaluation_in_every_copy(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32, freeze=2)
    other = copied(model)
    for mode in (True, False, True):
        assert other.train(mode) is other
        norms = {
            name: module.training
            for name, module in other.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
        }
        frozen = {name for name in norms if name.startswith(("conv1", "bn1", "layer1."))}
        assert frozen
        assert len(frozen) < len(norms)
        assert {name for name, training in norms.items() if training} == (norms.keys() - frozen if mode else set())
        assert other.training == mode
    assert model.state_dict().keys() == create_classifier("test_resnet", 3)[0].state_dict().keys()


def test_batch_norms_of_one_dimension_and_without_weights_are_kept_too() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2),
        nn.BatchNorm1d(2),
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)),
        nn.Linear(2, 2),
    )
    freeze_stages(model, 3)
    model.train()
    assert (model[1].training, model[2][1].training, model[2].training) == (False, False, True)
    freeze_stages(model, 2)
    assert (model[1].training, model[2][1].training) == (False, True)


def test_freezing_less_thaws_the_rest() -> None:
    model, _ = create_classifier("test_resnet", 3, freeze=4)
    freeze_stages(model, ["layer2"])
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"conv1", "bn1", "layer1", "layer3", "layer4", "fc"}
    assert (model.bn1.training, model.layer2[0].bn1.training) == (True, False)
    freeze_stages(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.train().modules())


def test_freezing_keeps_the_mode() -> None:
    model = create_classifier("test_resnet", 3)[0].eval()
    freeze_stages(model, 1)
    assert not any(module.training for module in model.modules())


def test_a_frozen_model_trains_with_ema_weights() -> None:
    model = tiny_model()
    freeze_stages(model, 2)
    before = deepcopy(model.state_dict())
    trainer = fit(make_trainer(ModelEmaMixin, model, ema_decay=0.5), tiny_data())
    for weights in trainer.evaluated_models().values():
        changed = {name for name, tensor in weights.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {"5.weight", "5.bias"}


@pytest.mark.parametrize(
    ("freeze", "kind", "words"),
    [
        (6, ValueError, ["freeze to be from 0 to 5 of the stages", "one must be left", "but got 6"]),
        (-6, ValueError, ["freeze to be from 0 to 5", "but got -6", "-1 is all but the last"]),
        (["layr1"], ValueError, ["freeze to name stages of the model", "'layr1'", "Did you mean 'layer1'"]),
        (["stem", "layer1", "layer2", "layer3", "layer4", "head"], ValueError, ["freeze to leave a stage to train"]),
        ("layer1", TypeError, ["freeze to be a number of stages or a list", "'layer1'", "The stages are ['stem'"]),
        (True, TypeError, ["freeze to be a number of stages or a list", "True"]),
    ],
)
def test_stages_that_are_not_there_are_refused(freeze: Any, kind: type[Exception], words: list[str]) -> None:
    with refused(kind, *words):
        create_classifier("test_resnet", 3, freeze=freeze)

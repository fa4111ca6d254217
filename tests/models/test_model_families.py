"""Families whose classifiers, poolings and shapes differ, by the checks that write docs/families.md."""

import logging
from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType

import pytest

import benchmarks.families
from timm_accel.models.building import pooling_kinds

OWN = ("vit", "vit_relpos", "byobnet", "coatnet", "convnext", "nfnet", "resnet", "efficientnet", "mambaout")
MORE = ("resnet10t", "mobilenetv3_small_050", "regnetx_002", "mixer_s32_224", "darknet17")


@pytest.fixture(scope="module")
def families() -> Iterator[ModuleType]:
    yield benchmarks.families
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", [*(f"test_{own}" for own in OWN), *MORE])
def test_a_family_has_every_head_and_its_poolings_trains_loads_and_gives_features(
    families: ModuleType, name: str
) -> None:
    found = families.check_models(name)
    assert found["heads"] == "linear, mlp, function"
    assert found["poolings"].startswith("avg, ")
    assert found["poolings"].endswith("''")
    assert found["a step"] == found["weights"] == "yes"
    assert " from " in found["vectors"]
    assert "pyramid" in found["maps"] or "blocks" in found["maps"]
    assert int(found["nodes"]) > 20
    assert not found["why not"]


@pytest.mark.parametrize("name", ["starnet_s050", "dla46x_c"])
def test_a_family_gives_maps_and_nodes(families: ModuleType, name: str) -> None:
    assert "blocks" in families._maps(name)
    assert int(families._nodes(name)) > 20


@pytest.mark.parametrize("name", ["efficientvim_m1", "dla46x_c"])
def test_a_family_with_another_classifier_keeps_it(families: ModuleType, name: str) -> None:
    assert families._tried(lambda: families._head(name, "mlp")).startswith(
        "no: ValueError: Expected head to be 'linear'"
    )
    assert families._head(name, "linear") is None
    assert families._weights(name) is None


def test_each_pooling_of_a_family_gives_something_else(families: ModuleType) -> None:
    assert families._poolings("test_resnet", pooling_kinds("test_resnet")) == "avg, max, avgmax, catavgmax, ''"
    assert families._poolings("test_resnet", []) == "''"
    with pytest.raises(ValueError, match="one is ignored"):
        families._poolings("test_resnet", ["avg", "avg"])


def test_a_model_whose_blocks_share_weights_is_saved_and_loaded(families: ModuleType) -> None:
    assert families._weights("coat_tiny") is None


def test_the_table_names_fifty_families_or_more_and_has_a_row_for_each(
    families: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(set(families.FAMILIES)) == len(families.FAMILIES) >= 50
    monkeypatch.setattr(families, "check_models", lambda name: {"heads": f"of {name}"})
    (table,) = families.main(Namespace(names=["a", "b"]))
    assert table.markdown() == "| model | heads |\n|---|---|\n| a | of a |\n| b | of b |"
    assert len(families.main(Namespace(names=[]))[0].rows) == len(families.FAMILIES)
    assert capsys.readouterr().out.startswith("a {'heads': 'of a'}\n")

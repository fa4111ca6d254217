"""Families whose classifiers, poolings and shapes differ, by the checks that write docs/families.md."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tools import load_example

from timm_accel.models.pooling import pooling_kinds

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "families.py"
SMALL = ["test_vit", "test_byobnet", "test_coatnet", "test_convnext", "test_nfnet", "test_mambaout"]


@pytest.fixture(scope="module")
def families() -> Iterator[ModuleType]:
    yield load_example(BENCHMARK)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", [*SMALL, "mobilenetv3_small_050"])
def test_a_family_has_every_head_trains_and_loads(families: ModuleType, name: str) -> None:
    assert families._head(name, "mlp") is None
    assert families._head(name, "function") is None
    assert families._step(name, "mlp") is None
    assert families._weights(name) is None
    assert families._vectors(name, mlp=True)


@pytest.mark.parametrize("name", ["test_coatnet", "test_vit", "starnet_s050", "dla46x_c"])
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


def test_the_table_names_fifty_families_or_more(
    families: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(families.FAMILIES)) == len(families.FAMILIES) >= 50
    monkeypatch.setattr(families, "DOCS", tmp_path / "families.md")
    families.DOCS.write_text("# Families\n")
    families.write({"a": {"heads": "x | y"}})
    families.write({"b": {"heads": "z"}})
    assert families.DOCS.read_text() == "# Families\n\n| model | heads |\n| --- | --- |\n| b | z |\n"

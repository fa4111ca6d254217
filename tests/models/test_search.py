"""The search finds the models that fit, and counts each of them once."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from refusal import refused

from timm_accel.models import search, search_models


def found(folder: Path, *args: Any, **options: Any) -> list[str]:
    return [model.name for model in search_models(*args, cache_folder=folder, **options)]


def test_a_model_is_found_with_its_size_and_the_tags_of_its_weights(tmp_path: Path) -> None:
    (model,) = search_models("resnet18", tag="*in1k", cache_folder=tmp_path, max_parameters=11.7e6)[:1]
    built = timm.create_model("resnet18")
    assert (model.name, model.num_parameters) == ("resnet18", sum(each.numel() for each in built.parameters()))
    assert model.input_size == (3, 224, 224)
    assert {f"resnet18.{tag}" for tag in model.tags} <= set(timm.list_pretrained("resnet18.*"))
    assert "a1_in1k" in model.tags
    assert all(tag.endswith("in1k") for tag in model.tags)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_res", ["test_resnet"]),  # a part of the name
        ("test_resnet", ["test_resnet"]),
        ("test_*net", sorted(timm.list_models("test_*net"))),
        ("*_resnet", ["test_resnet"]),  # of the whole name
        ("resnet_that_is_none", []),
    ],
)
def test_names_are_found_by_a_part_or_a_pattern(name: str, expected: list[str], tmp_path: Path) -> None:
    assert sorted(found(tmp_path, name)) == expected


def test_the_smallest_come_first_and_none_is_above_the_limit(tmp_path: Path) -> None:
    models = search_models("test_", cache_folder=tmp_path)
    sizes = [model.num_parameters for model in models]
    assert sizes == sorted(sizes)
    limit = sizes[len(sizes) // 2]
    assert found(tmp_path, "test_", max_parameters=limit) == [m.name for m in models if m.num_parameters <= limit]
    with refused(ValueError, "max_parameters to be a positive number", "got 0", "None"):
        search_models("test_", max_parameters=0)


def test_a_tag_leaves_models_without_such_weights_out(tmp_path: Path) -> None:
    without = sorted(set(found(tmp_path, "resnet10t*")) | set(found(tmp_path, "resnet?4t")))
    assert found(tmp_path, "resnet10t", tag="c3_in1k") == ["resnet10t"]
    assert found(tmp_path, "resnet10t", tag="laion") == []
    assert "resnet10t" in without


@pytest.mark.parametrize("damage", ["", "[]", '{"test_resnet": "many"}', "\0\1"])
def test_models_are_counted_once_and_again_where_the_cache_is_damaged(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[str] = []

    def noting(name: str, **options: Any) -> Any:
        created.append(name)
        return timm.create_model(name, **options)

    monkeypatch.setattr(search, "create_on_meta", noting)
    for _ in range(2):
        found(tmp_path, "test_resnet")
    assert created == ["test_resnet"]
    (file,) = tmp_path.iterdir()
    assert timm.__version__ in file.name
    (count,) = json.loads(file.read_text()).values()
    file.write_text(damage)
    assert search_models("test_resnet", cache_folder=tmp_path)[0].num_parameters == count
    assert created == ["test_resnet"] * 2

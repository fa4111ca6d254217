"""The command models: the models that `search_models` finds."""

from pathlib import Path

import pytest
from refusal import refused
from screens import Screen

from timm_accel.commands.models import models
from timm_accel.models import search


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "user_cache_dir", lambda name: str(tmp_path))


def test_a_line_has_the_size_of_a_model_and_its_tags(screen: Screen) -> None:
    title, first, last = screen.run(models, "test_resnet", max_parameters="1e6")
    assert title.split() == ["model", "parameters", "size", "image", "tags"]
    assert first.split() == ["test_resnet", "0.5", "M", "1.9", "MB", "160x160", "r160_in1k"]
    assert last == "1 model"


def test_many_tags_take_more_lines(screen: Screen) -> None:
    for columns in (40, 60, 80):
        lines = screen.run(models, "resnet18", max_mb=46.85, columns=columns)
        assert {"a1_in1k,", "gluon_in1k,"} < set(" ".join(lines).split())
        assert lines[-1] == "2 models"


@pytest.mark.parametrize("limit", ["0.6M", "0.6m", "600k", "600000", "6e5", " 6e5 "])
def test_limits_are_written_as_people_write_them(screen: Screen, limit: str) -> None:
    lines = screen.run(models, "test_*net", max_parameters=limit)
    assert {line.split()[0] for line in lines[1:-1]} == {
        found.name for found in search.search_models("test_*net") if found.num_parameters <= 6e5
    }


def test_the_smaller_limit_counts(screen: Screen) -> None:
    wide = screen.run(models, "test_resnet", max_mb=2.0, max_parameters="1M")
    assert wide[-1] == "1 model"
    with refused(ValueError, "got none for 'test_resnet' within the limit", "Raise the limit"):
        screen.run(models, "test_resnet", max_mb=1.0, max_parameters="1M")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnt18", {}, ["none for 'resnt18'", "Did you mean 'resnet18'"]),
        ("test_resnet", {"tag": "r16_in1k"}, ["with the tag 'r16_in1k'", "Did you mean 'r160_in1k'"]),
        ("test_resnet", {"max_parameters": "many"}, ["max_parameters to be a number", "'many'"]),
        ("test_resnet", {"max_parameters": ""}, ["max_parameters to be a number", "''"]),
        ("test_resnet", {"max_parameters": "-1M"}, ["max_parameters to be a positive number"]),
        ("test_resnet", {"max_parameters": "nan"}, ["max_parameters to be a positive number"]),
        ("test_resnet", {"max_mb": 0.0}, ["max_mb to be positive"]),
    ],
)
def test_a_mistake_is_one_sentence(screen: Screen, name: str, options: dict, words: list[str]) -> None:
    with refused(ValueError, *words):
        screen.run(models, name, **options)

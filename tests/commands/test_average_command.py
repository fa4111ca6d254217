"""The command average: the soup of `average_weights`, and what is in it."""

from pathlib import Path

import pytest
from refusal import refused
from safetensors.torch import load_file
from screens import Screen
from trained_runs import trained_run

from timm_accel import evaluate_classifier
from timm_accel.commands.average import average
from timm_accel.model_soup import average_weights


def two() -> list[str]:
    """The best and the last weights of the run, which differ."""
    return [str(trained_run().run / "best"), str(trained_run().run / "state" / "latest")]


def test_the_soup_is_that_of_the_function(screen: Screen, tmp_path: Path) -> None:
    lines = screen.run(average, two(), out=str(tmp_path / "soup"), columns=300)
    assert lines[0].split() == ["soup", str(tmp_path / "soup")]
    assert lines[1] == "averaged  2 of 2 folders, uniform"
    assert lines[2].split()[:2] == ["folders", two()[0]]
    average_weights(two(), out=tmp_path / "expected")
    soup, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("soup", "expected"))
    assert all(soup[name].equal(expected[name]) for name in expected)


def test_count_chooses_by_the_metric(screen: Screen, tmp_path: Path) -> None:
    options = {"count": 1, "metric": "eval_loss_epoch", "columns": 300}
    lines = screen.run(average, two(), out=str(tmp_path / "soup"), **options)
    assert lines[1:3] == ["averaged   1 of 2 folders, uniform", "chosen by  eval_loss_epoch"]
    assert lines[3].split() == ["folders", two()[0]]


def test_greedy_keeps_what_makes_the_soup_no_less_accurate(screen: Screen, tmp_path: Path) -> None:
    data = trained_run().data
    lines = screen.run(average, two(), out=str(tmp_path / "soup"), method="greedy", data=str(data), columns=300)
    average_weights(
        two(),
        out=tmp_path / "expected",
        method="greedy",
        evaluate=lambda model: evaluate_classifier(model, data).metrics["accuracy"],
    )
    soup, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("soup", "expected"))
    assert all(soup[name].equal(expected[name]) for name in expected)
    assert "greedy" in lines[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "greedy"}, ["data with method greedy", "None", "Name held-out images"]),
        ({"data": "data"}, ["data with method greedy", "'uniform'", "Leave data out"]),
        ({"method": "greedy", "data": "data", "count": 1}, ["no count with method greedy", "Leave it out"]),
        ({"method": "greedy", "data": "data", "metric": "accuracy"}, ["no metric with method greedy"]),
        ({"metric": "accuracy"}, ["count beside metric"]),
        ({"count": 3}, ["count to be from 1", "3"]),
        ({"count": 1, "metric": "eval_los_epoch"}, ["metric to be one that was recorded", "eval_loss_epoch"]),
        ({"folders": ["best"]}, ["folders to be at least two"]),
        ({"folders": ["run/best", "rum/best"]}, ["'rum/best'", "Did you mean 'run/best'?"]),
        ({"out": "run"}, ["out to be a new folder"]),
    ],
)
def test_a_mistake_is_one_sentence_and_no_soup(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(trained_run().run)
    with refused((ValueError, FileNotFoundError, FileExistsError), *words):
        screen.run(average, **{"folders": two(), "out": "soup"} | change)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

"""The example, as a function and as a command."""

import runpy
import sys
from pathlib import Path

import pytest
from refusal import refused
from tiny_runs import load_example
from trained_runs import Trained, draw_image, trained_run

from timm_accel import load_classifier

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "predict.py"


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The run that all tests of predictions share."""
    return trained_run()


def test_the_example_prints_and_writes_a_line_for_each_image(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_image(0, 9).save(tmp_path / "a.png")
    draw_image(1, 9).save(tmp_path / "b.png")
    out = tmp_path / "out.csv"
    assert load_example(EXAMPLE).main([str(trained.run), str(tmp_path), "--top_k", "2", "--out", str(out)]) == 0
    expected = load_classifier(trained.run).predict(tmp_path, top_k=2)
    assert capsys.readouterr().out.splitlines() == [
        f"{each.path}  {each.labels[0]} {each.scores[0]:.3f}  {each.labels[1]} {each.scores[1]:.3f}"
        for each in expected
    ]
    assert len(out.read_text().splitlines()) == 3


def test_the_exit_code_says_that_an_image_could_not_be_read(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_image(0, 9).save(tmp_path / "a.png")
    assert load_example(EXAMPLE).main([str(trained.run), str(tmp_path / "a.png"), str(tmp_path / "no.png")]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'a.png'} ")
    assert "No such file" in second


def test_a_mistake_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["predict.py", "no/such", str(tmp_path)])
    with refused(SystemExit, "predict.py: Expected path to be a run", "'no/such'", "Correct the path"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")

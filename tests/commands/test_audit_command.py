"""The command audit: the table of `audit` at the width of the terminal."""

import json
import shutil
from pathlib import Path

import pytest
from refusal import refused
from screens import Screen
from trained_runs import trained_run

from timm_accel.commands.audit import audit


def test_the_table_and_the_findings_are_shown_and_written(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    lines = screen.run(audit, str(trained_run().data), model="resnet18", num_workers=0, out=str(out))
    assert lines[0].split() == ["train", "val"]
    assert lines[1].split() == ["files", "24", "15"]
    problems = json.loads(out.read_text())["problems"]
    assert any("far from the model's" in problem for problem in problems)
    shown = " ".join(" ".join(lines).split())
    for number, problem in enumerate(problems, 1):
        assert f"{number}. {problem}" in shown


def test_the_splits_are_below_each_other_on_a_narrow_terminal(screen: Screen) -> None:
    lines = screen.run(audit, str(trained_run().data), num_workers=0, columns=40)
    assert [line.split() for line in lines if line.startswith("files")] == [["files", "24"], ["files", "15"]]
    assert [line.strip() for line in lines if line.strip() in ("train", "val")] == ["train", "val"]


def test_an_unreadable_file_ends_with_code_1(screen: Screen, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained_run().data, data)
    (data / "val" / "cat" / "broken.png").write_bytes(b"no image")
    code, lines = screen.end(audit, str(data), num_workers=0)
    assert code == 1
    assert "broken.png" in "\n".join(lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "dat"}, ["'dat'", "Did you mean 'data'?"]),
        ({"model": "resnt18"}, ["model to be a name of timm", "Did you mean 'resnet18'"]),
        ({"out": "audit.csv"}, ["out to end in .json"]),
        ({"pixel_range": (5.0, 1.0)}, ["pixel_range"]),
        ({"num_workers": -1}, ["num_workers"]),
    ],
)
def test_a_mistake_is_one_sentence(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(trained_run().data)
    with refused((ValueError, FileNotFoundError), *words):
        screen.run(audit, **{"data": "data", "num_workers": 0} | change)

"""Runs side by side: the page shows what compares and tells what does not; other tasks are refused in a sentence."""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusal import refused

from timm_accel.report import report
from timm_accel.states.run_dir import LOCK, lock_run_dir, unlock_run_dir

HISTORY = "epoch,lr,train_loss_epoch,accuracy\n1,0.1,2.0,0.5\n2,0.1,1.0,0.75\n"


def write_run(
    folder: Path, history: str = HISTORY, classes: list[str] | None = None, recipe: Any = None, **config: Any
) -> Path:
    """A run of two epochs on three classes, without weights where `classes` is empty."""
    folder.mkdir()
    (folder / "history.csv").write_text(history)
    classes = ["cat", "dog", "owl"] if classes is None else classes
    if classes:
        (folder / "best").mkdir()
        best = {"metric": "accuracy", "value": 0.75, "epoch": 2}
        about = {"architecture": "test_resnet", "num_classes": len(classes), "label_names": classes, "best": best}
        (folder / "best" / "config.json").write_text(json.dumps(about | config))
    options = {"model": "test_resnet", "num_epochs": 2, "data_dir": "photos"}
    if recipe is not False:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(options | (recipe or {})))
    return folder


def notes_of(*runs: Path) -> list[str]:
    page = report(list(runs), runs[0].parent / "both.html").read_text(encoding="utf-8")
    return re.findall(r'<p class="note">(.*?)</p>', page)


def test_equal_runs_have_no_notes(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", classes=["owl", "cat", "dog"], recipe={"lr": 0.5})]
    assert notes_of(*runs) == []


def test_other_classes_and_other_images_are_shown_and_the_page_says_that_they_do_not_compare(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", classes=["cat", "fox"], recipe={"data_dir": "snow"})]
    runs.append(write_run(tmp_path / "c", recipe={"exclude": "suspects.csv"}))
    assert notes_of(*runs) == [
        "The classes differ (a 3 classes, b 2 classes, c 3 classes; 1 in common): the metrics of these runs do not "
        "compare.",
        "The runs differ in data_dir, exclude: compare their metrics only if the evaluation images are the same.",
    ]
    assert "<figcaption>accuracy</figcaption>" in (tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("order", [1, -1])
def test_runs_of_other_tasks_are_refused(order: int, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", multi_label=True)][::order]
    with refused(ValueError, "Expected runs of one task, but got", "'b' (multi-label)" if order > 0 else "'b'"):
        report(runs, tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()
    assert notes_of(write_run(tmp_path / "c", multi_label=True), runs[order > 0]) == []


def test_runs_without_weights_history_or_recipe_are_shown_as_far_as_they_are(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", history=HISTORY.replace("accuracy", "map")),
        write_run(tmp_path / "b", classes=[], recipe={"num_epochs": 9}),
        write_run(tmp_path / "c", history="", recipe=False),
    ]
    assert notes_of(*runs) == [
        "b has 2 of 9 epochs so far: it is in progress, or it stopped.",
        "b has no weights yet, so that its classes are not known.",
        "c has no recipe.yaml, so that its images are not known.",
        "Not shown, since not all runs recorded them: map, accuracy.",
    ]
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert re.findall(r'<td>c</td><td class="number">(\d)</td>.*?<td class="number">(.*?)</td>', page, re.DOTALL) == [
        ("0", "")
    ]


def test_a_run_in_progress_is_shown_with_its_process(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", classes=[], recipe={"num_epochs": 9})
    lock = lock_run_dir(run)
    report(run)
    unlock_run_dir(lock)
    assert "it is in progress, or it stopped" in (run / "report.html").read_text()  # this very process
    (run / LOCK).write_text(f"{os.getppid()}\n{platform.node()}\n")
    report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert f"The run has 2 of 9 epochs so far: it is in progress (process {os.getppid()} on {platform.node()})." in text
    assert "The run has no weights yet" in text


def test_a_run_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with refused(ValueError, "Expected runs to be different", str(run), "twice"):
        report([run, write_run(tmp_path / "b"), f"{run}/../a"])
    with refused(ValueError, "Expected runs that recorded the same metrics", "'c', 'd'"):
        report([write_run(tmp_path / "c", history=""), write_run(tmp_path / "d", history="")])


@pytest.mark.parametrize("out", ["history.csv/page.html", "best", "report.html/page.html"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "a")
    (run / "report.html").write_text("old")
    monkeypatch.setattr("timm_accel.report.writing.page_of", lambda *_, **__: 1 / 0)
    with refused(OSError, "Expected path to be", str(run / out)):
        report(run, run / out)
    assert (run / "report.html").read_text() == "old"
    assert sorted(path.name for path in run.iterdir()) == ["best", "history.csv", "recipe.yaml", "report.html"]

"""The command evaluate: the numbers of `evaluate_classifier`, a file, and an exit code."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import write_images
from refusal import refused
from screens import Screen
from trained_runs import trained_run

from timm_accel import evaluate_classifier, load_classifier
from timm_accel.commands.evaluate import evaluate
from timm_accel.text_files import read_csv


def test_the_numbers_are_those_of_the_function(screen: Screen, tmp_path: Path) -> None:
    run, data = str(trained_run().run), str(trained_run().data)
    expected = evaluate_classifier(run, data)
    lines = screen.run(evaluate, run, data, out=str(tmp_path / "out.json"))
    shown = dict(line.split() for line in lines[: lines.index("")])
    assert shown == {"images": "15", "classes": "3"} | {name: f"{each:.4f}" for name, each in expected.metrics.items()}
    (title, *rows) = lines[lines.index("") + 1 :][:4]
    assert title.split() == ["class", "precision", "recall", "f1", "support"]
    first = expected.classes[0]
    assert rows[0].split() == ["cat", f"{first.precision:.3f}", f"{first.recall:.3f}", f"{first.f1:.3f}", "5"]
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == expected.metrics


def test_a_csv_has_a_row_for_each_class_and_narrow_terminals_all_numbers(screen: Screen, tmp_path: Path) -> None:
    run, data = str(trained_run().run), str(trained_run().data)
    lines = screen.run(evaluate, run, data, columns=40, tta=["hflip"], out=str(tmp_path / "out.csv"))
    expected = evaluate_classifier(run, data, tta=("hflip",))
    assert f"{expected.metrics['accuracy']:.4f}" in "\n".join(lines)
    assert [(row["class"], float(row["f1"])) for row in read_csv(tmp_path / "out.csv")] == [
        (each.name, each.f1) for each in expected.classes
    ]


def test_the_temperature_is_fitted_on_another_split_and_kept(screen: Screen, tmp_path: Path) -> None:
    run, data = tmp_path / "run", str(trained_run().data)
    shutil.copytree(trained_run().run, run)
    before = evaluate_classifier(run, data).metrics
    lines = screen.run(evaluate, str(run), data, fit_temperature="train", columns=200)
    temperature = load_classifier(run).temperature
    assert temperature != 1
    assert lines[0] == f"temperature {temperature:.4f}, fitted on train, written into {run}/best/config.json"
    after = evaluate_classifier(run, data).metrics
    assert after["accuracy"] == before["accuracy"]
    assert f"{after['calibration_error']:.4f}" in "\n".join(lines)


def test_an_exported_file_keeps_no_temperature(screen: Screen) -> None:
    path = trained_run().path("model.pt2")
    content = path.read_bytes()
    lines = screen.run(evaluate, str(path), str(trained_run().data), fit_temperature="train", columns=200)
    assert lines[0].endswith("for this evaluation only, since an exported file stays as it is")
    assert path.read_bytes() == content


@pytest.mark.parametrize(("eval_split", "fitted"), [("val", "val"), ("validation", "val"), (None, "train")])
def test_the_temperature_is_not_fitted_on_what_is_evaluated(
    screen: Screen, eval_split: str | None, fitted: str
) -> None:
    with refused(ValueError, "fit_temperature to be another split than eval_split", repr(fitted)):
        screen.run(evaluate, str(trained_run().run), "/no/data", eval_split=eval_split, fit_temperature=fitted)


def test_unreadable_images_are_named_and_end_with_code_1(screen: Screen, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained_run().data, data)
    (data / "val" / "cat" / "broken.png").write_bytes(b"no image")
    code, lines = screen.end(evaluate, str(trained_run().run), str(data))
    assert code == 1
    assert lines[0].split("  ")[-1].strip() == "15 of 16"
    assert "broken.png" in "\n".join(lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "date"}, ["'date'", "Did you mean 'data'?"]),
        ({"data": "other"}, ["the model's 3 classes", "lacks ['cat', 'dog', 'owl']", "['bee'] besides"]),
        ({"eval_split": "test"}, ["split 'test'", "['train', 'val']"]),
        ({"out": "out.yaml"}, ["out to end in .csv, .json"]),
        ({"model": "data"}, ["path to be a run that holds best or best_ema", "'data'"]),
        ({"num_workers": -1}, ["num_workers"]),
    ],
)
def test_a_mistake_is_one_sentence(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "other" / "val", {"bee": 2})
    Path("data").symlink_to(trained_run().data)
    with refused((ValueError, FileNotFoundError), *words):
        screen.run(evaluate, **{"model": str(trained_run().run), "data": "data"} | change)

"""The command export: the file of `export`, and what it takes and returns."""

import shutil
from pathlib import Path

import pytest
from refusal import refused
from screens import Screen
from trained_runs import trained_run

from timm_accel.commands.export import export
from timm_accel.export import open_exported


def facts(lines: list[str]) -> dict[str, str]:
    return {name: value.strip() for name, value in (line.split("  ", 1) for line in lines)}


def test_the_file_is_described(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    shown = facts(screen.run(export, str(trained_run().run), str(out), normalize=True, softmax=True, columns=200))
    assert shown["file"] == str(out)
    assert shown["format"] == "onnx, opset 18, made by dynamo"
    assert shown["takes"] == "uint8 images (B, 3, 32, 32)"
    assert shown["returns"] == "probabilities (B, 3)"
    assert shown["classes"] == "cat, dog, owl"
    assert shown["size"] == f"{out.stat().st_size / 1e6:.1f} MB"
    assert open_exported(out).metadata.includes_softmax


def test_options_reach_the_exporter(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    options = {"method": "trace", "class_names": ["a", "b", "c"], "temperature": 2.0, "multi_label": True}
    shown = facts(screen.run(export, str(trained_run().path("best")), str(out), **options, columns=200))
    assert shown["format"] == "torchscript, made by trace"
    assert shown["takes"] == "normalized float32 images (B, 3, 32, 32)"
    assert shown["returns"] == "logits (B, 3)"
    found = open_exported(out).metadata
    assert (found.class_names, found.temperature, found.multi_label) == (("a", "b", "c"), 2.0, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out": "model.pth"}, ["out to end in .onnx", "'model.pth'", "Did you mean"]),
        ({"out": "model.pt", "opset": 17}, ["options of export_torchscript", "'opset'"]),
        ({"out": "model.pt2", "dynamic_size": True}, ["options of export_program", "'dynamic_size'"]),
        ({"out": "model.onnx", "method": "trace"}, ["options of export_onnx", "'method'"]),
        ({"source": "rum"}, ["source to be a folder with config.json", "'rum'", "Did you mean 'run'?"]),
        ({"temperature": 0.0}, ["temperature", "positive"]),
        ({"class_names": ["a"]}, ["class_names", "3"]),
    ],
)
def test_a_mistake_is_one_sentence_and_no_file(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(trained_run().run)
    with refused((ValueError, TypeError, FileNotFoundError), *words):
        screen.run(export, **{"source": "run", "out": "model.pt2"} | change)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_weights_is_named_as_such(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "run" / "state").mkdir(parents=True)
    with refused(FileNotFoundError, "path to be a run that holds best", "ended before its first evaluation"):
        screen.run(export, str(tmp_path / "run"), str(tmp_path / "model.pt2"))
    shutil.rmtree(tmp_path / "run" / "state")
    with refused(FileNotFoundError, "source to be a folder with config.json", "Check the spelling"):
        screen.run(export, str(tmp_path / "run"), str(tmp_path / "model.pt2"))

"""Training ends with the page of the run, folds with their metrics, and audit and report take what they wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images
from refusal import refused

from timm_accel import Recipe
from timm_accel.commands.audit import audit
from timm_accel.commands.report import report
from timm_accel.commands.train import train

SMALL = {"model": "test_resnet", "image_size": 32, "num_epochs": 1, "batch_size": 4, "num_workers": 0,
         "warmup_epochs": 0}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("report_command") / "data", {"cat": 9, "dog": 9})


def test_training_writes_the_page_unless_asked_not_to(data: Path, tmp_path: Path, capsys: Any) -> None:
    train(Recipe(data_dir=str(data), run_dir=str(tmp_path / "run"), **SMALL))
    assert f"Report: {tmp_path}/run/report.html" in capsys.readouterr().out
    assert "<figcaption>Calibration</figcaption>" in (tmp_path / "run" / "report.html").read_text()
    train(Recipe(data_dir=str(data), run_dir=str(tmp_path / "other"), **SMALL), report=False)
    assert not (tmp_path / "other" / "report.html").exists()
    report([str(tmp_path / "run"), str(tmp_path / "other")], out=str(tmp_path / "both.html"))
    assert f"Report: {tmp_path}/both.html" in capsys.readouterr().out
    with refused(ValueError, "Expected out to end in .html"):
        report([str(tmp_path / "run")], out=str(tmp_path / "page.pdf"))


def test_a_page_that_cannot_be_written_is_said_and_the_run_stands(data: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    train(Recipe(data_dir=str(data), run_dir=str(tmp_path / "run"), **SMALL))
    printed = capsys.readouterr().out
    assert "The report could not be written:" in printed
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_folds_print_their_metrics_and_the_audit_takes_their_predictions(
    data: Path, tmp_path: Path, capsys: Any
) -> None:
    train(Recipe(data_dir=str(data), run_dir=str(tmp_path / "cv"), folds=2, **SMALL))
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "cv" / "cross_validation.json").read_text())
    assert "2 folds, 18 images" in printed
    assert f"{written['last_mean_and_deviation']['accuracy'][0]:.4f}" in printed
    predictions, suspects = str(tmp_path / "cv" / "out_of_fold.parquet"), str(tmp_path / "suspects.csv")
    assert audit(str(data), num_workers=0, predictions=predictions, suspects=suspects) == 0
    assert (tmp_path / "suspects.csv").read_text().startswith("path,label,suggestion,score,kind")
    with refused(ValueError, "Expected predictions beside suspects"):
        audit(str(data), num_workers=0, suspects=suspects)

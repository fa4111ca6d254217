"""The page of a cross-validation shows the metrics of its folds, and suspect images by kind, the worst first."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_images
from refusal import refused

from timm_accel import Recipe
from timm_accel.audit import find_suspects
from timm_accel.predict import Scores
from timm_accel.recipes import cross_validate
from timm_accel.report import cross_validation, report

EVIL = "<script>alert(1)⁄"
SMALL = {"model": "test_resnet", "image_size": 32, "num_epochs": 1, "batch_size": 6, "num_workers": 0,
         "warmup_epochs": 0, "cache": "memory"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds whose predictions were replaced: three labels are wrong, an image fits no class, one lies between."""
    root = tmp_path_factory.mktemp("page")
    write_images(root / "data" / "train", {EVIL: 20, "owl": 20})
    write_images(root / "data" / "val", {EVIL: 2, "owl": 2})
    recipe = Recipe(data_dir=str(root / "data"), run_dir=str(root / "cv"), folds=2, **SMALL)
    scores = cross_validate(recipe).scores
    sure = torch.nn.functional.one_hot(scores.targets, 2).double() * 0.9 + 0.05
    for number, own in {3: 0.1, 25: 0.02, 30: 0.04}.items():
        label = int(scores.targets[number])
        sure[number, label], sure[number, 1 - label] = own, 1 - own
    sure[10] = torch.tensor([0.52, 0.48])
    replace(scores, probabilities=sure).to_parquet(root / "cv" / "out_of_fold.parquet")
    return root / "cv"


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return report(folder).read_text(encoding="utf-8")


def test_suspect_images_are_shown_by_kind_the_worst_first(folder: Path, text: str) -> None:
    suspects = text[text.index('id="suspects"') :].partition("</section>")[0]
    assert re.findall(r"<h3>(.*?)</h3>", suspects) == [
        "The label is likely wrong: 3 of 40 images",
        "Between two classes: 1 of 40 images",
    ]
    assert re.findall(r'<span class="path" title=".*?">(.*?)</span>', suspects) == [
        "005.png", "010.png", "003.png", "010.png",
    ]  # fmt: skip
    assert re.findall(r"score ([\d.]+)", suspects) == ["0.020", "0.040", "0.100", "0.040"]
    assert suspects.count('src="data:image/jpeg;base64,') == 4
    evil = EVIL.replace("<", "&lt;").replace(">", "&gt;")
    assert re.findall(r"label <b>(.*?)</b>", suspects) == ["owl", "owl", evil, evil]
    assert re.findall(r"predicted <b>(.*?)</b>", suspects) == [evil, evil, "owl"]
    assert text.count("<script") == 1  # ours


def test_the_metrics_are_mean_and_deviation_of_the_folds(folder: Path, text: str) -> None:
    written = json.loads((folder / "cross_validation.json").read_text())
    mean, deviation = written["last_mean_and_deviation"]["accuracy"]
    assert f'<td>accuracy</td><td class="number">{mean:.4f}</td><td class="number">{deviation:.4f}</td>' in text
    assert "<td>ema_model_accuracy</td>" in text  # of the last epoch
    assert "<td>negative_log_likelihood</td>" not in text  # of the best weights, which the fold has chosen
    assert "cv: 2 folds" in text
    assert "<td>fold_1</td>" in text
    assert "<td>fold_2</td>" in text


def test_a_page_has_a_limit_of_images_and_decodes_no_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cross_validation, "MAX_IMAGES", 2)
    text = report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "decode" not in capsys.readouterr().err  # the bar of the cache, which decodes all images
    assert "The first 2 are shown." in text
    assert text.count("<li>") == 3


def test_what_is_missing_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("best*", "cross_validation.json"))
    text = report(copy).read_text(encoding="utf-8")
    assert "The images could not be read:" in text
    assert text.count('class="none">no image') == 4
    assert "mean</th>" not in text
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    text = report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Suspect images could not be found: Expected the extra &#39;labels&#39; to be installed" in text
    assert 'id="suspects"' not in text


def test_predictions_that_judge_no_label_are_said(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    scores = Scores.from_parquet(folder / "out_of_fold.parquet")
    scores.probabilities[7, 0] = float("nan")
    scores.to_parquet(copy / "out_of_fold.parquet")
    text = report(copy).read_text(encoding="utf-8")
    assert "Suspect images could not be found: Expected scores to be probabilities, but got nan" in text
    assert "<td>fold_2</td>" in text


def test_predictions_that_are_no_table_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "out_of_fold.parquet").write_bytes(b"no table")
    with refused(ValueError, "Expected a parquet file with the scores of images", "out_of_fold.parquet"):
        report(copy)
    (copy / "out_of_fold.parquet").unlink()  # as before the last fold ends
    with refused(FileNotFoundError, "Expected a run with a history or weights", "copy"):
        report(copy)
    assert len(find_suspects(Scores.from_parquet(folder / "out_of_fold.parquet"))) == 4

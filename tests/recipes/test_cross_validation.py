"""Every image is scored by the run that did not train on it, and a cut cross-validation ends in the same bits."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from conftest import write_images
from refusal import refused

from timm_accel import Recipe, load_classifier
from timm_accel.callbacks import SaveStateCallback
from timm_accel.commands import train as train_command
from timm_accel.predict import Scores
from timm_accel.recipes import build_run, cross_validate

SMALL = {"model": "test_resnet", "image_size": 32, "num_epochs": 2, "batch_size": 4, "num_workers": 0,
         "warmup_epochs": 0, "opt": "adamw", "lr": 1e-3}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("folds") / "data", {"cat": 7, "dog": 6, "owl": 6})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory):
    recipe = Recipe(data_dir=str(data), run_dir=str(tmp_path_factory.mktemp("whole") / "cv"), folds=3, **SMALL)
    return recipe, cross_validate(recipe)


@pytest.mark.parametrize("hindrance", [None, ValueError("no page\nat all"), OSError("No space left")])
def test_the_command_ends_with_the_page_of_all_folds_or_a_sentence(
    finished, hindrance: Exception | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(finished[0], resume="auto")  # trains no fold again
    page = Path(recipe.run_dir) / "report.html"
    train_command.train(recipe, report=False)
    assert "report" not in capsys.readouterr().out
    assert not page.exists()

    def fail(*_: object) -> None:
        raise hindrance

    if hindrance is not None:
        monkeypatch.setattr("timm_accel.report.writing.cross_validated", fail)
    train_command.train(recipe)
    last = capsys.readouterr().out.splitlines()[-1]
    if hindrance is None:
        assert last == f"Report: {page}"
        assert "cross-validation" in page.read_text(encoding="utf-8").lower()
        page.unlink()
    else:
        reason = "ValueError: no page" if isinstance(hindrance, ValueError) else "OSError: No space left"
        assert last == f"The report could not be written: {reason}"
        assert not page.exists()


def test_every_image_is_scored_by_the_fold_that_did_not_train_on_it(finished, data: Path) -> None:
    recipe, result = finished
    scores = result.scores
    assert scores.paths == sorted(map(str, data.rglob("*.png")))
    assert [scores.labels_of(index) for index in range(19)] == [(Path(path).parent.name,) for path in scores.paths]
    for fold in (1, 2, 3):
        folder = Path(recipe.run_dir) / f"fold_{fold}"
        lines = [line.split(",") for line in (folder / "split.csv").read_text().splitlines()[1:]]
        held_out = [str(data / path) for path, _, side in lines if side == "val"]
        part = Scores.from_parquet(folder / "scores.parquet")
        assert sorted(part.paths) == sorted(held_out)
        index = scores.paths.index(held_out[0])
        [prediction] = load_classifier(folder).predict(held_out[0], top_k=1)
        assert prediction.scores[0] == pytest.approx(scores.probabilities[index].max().item())


def test_mean_and_deviation_are_those_of_the_folds(finished) -> None:
    recipe, result = finished
    written = json.loads((Path(recipe.run_dir) / "cross_validation.json").read_text())
    for name, folds in {"best": result.best, "last": result.last}.items():
        values = [fold["accuracy"] for fold in folds]
        assert written[name] == folds or written[name] == list(folds)
        assert written[f"{name}_mean_and_deviation"]["accuracy"] == pytest.approx([fmean(values), stdev(values)])
    assert result.last[0].keys() > {"eval_loss_epoch", "accuracy", "ema_model_accuracy"}
    text = str(result)
    assert f"{fmean(fold['accuracy'] for fold in result.best):.4f}" in text
    assert max(map(len, text.splitlines())) <= 80
    read = Scores.from_parquet(Path(recipe.run_dir) / "out_of_fold.parquet")
    assert torch.equal(read.probabilities, result.scores.probabilities)


def test_a_cut_cross_validation_ends_in_the_same_bits(finished, tmp_path: Path, monkeypatch) -> None:
    recipe, whole = finished
    cut = replace(recipe, run_dir=str(tmp_path / "cv"), save_every_n_updates=1, resume="auto")
    updates = []

    def stop(callback, trainer, **kwargs) -> None:
        updates.append(trainer.current_run().num_updates)
        if len(updates) == 9:  # in the second fold: each has 3 updates in each of 2 epochs
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SaveStateCallback, "on_train_step_start", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            cross_validate(cut)
    assert not (tmp_path / "cv" / "fold_3").exists()
    first = (tmp_path / "cv" / "fold_1" / "scores.parquet").stat().st_mtime_ns
    again = cross_validate(cut)
    assert torch.equal(again.scores.probabilities, whole.scores.probabilities)
    assert (again.best, again.last) == (whole.best, whole.last)
    assert (tmp_path / "cv" / "fold_1" / "scores.parquet").stat().st_mtime_ns == first


def test_one_fold_is_a_run_of_its_own(finished, tmp_path: Path) -> None:
    recipe, whole = finished
    single = replace(recipe, fold=2, run_dir=str(tmp_path / "two"))
    trainer = build_run(single).train()
    assert trainer.run_history.get_latest_metric("accuracy") == whole.last[1]["accuracy"]
    with refused(ValueError, "Expected folds without fold", "folds=3 and fold=2"):
        cross_validate(single)
    with refused(ValueError, "Expected fold to be from 1 to 3 for one run, but got None"):
        build_run(replace(single, fold=None, run_dir=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
    with refused(FileExistsError, "runs are never overwritten", "fold_1"):
        cross_validate(recipe)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": 1}, "Expected folds to be an integer of at least 2, but got 1"),
        ({"folds": 3, "fold": 4}, "Expected fold to be from 1 to 3, but got 4"),
        ({"fold": 1}, "Expected fold to be None without folds, but got 1"),
        ({"folds": "five"}, "Expected folds to be an integer of at least 2, but got 'five'"),
    ],
)
def test_folds_that_cannot_be_are_refused(options: dict, words: str) -> None:
    with refused(ValueError, words):
        Recipe(**options)

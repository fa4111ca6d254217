"""A run ends with its page, of the data that it has open; what hinders the page leaves the run as it is."""

from pathlib import Path
from typing import Any

import pytest
from conftest import write_images
from refusal import refused
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel import Recipe
from timm_accel.callbacks import Callback, CsvHistoryCallback
from timm_accel.recipes import build_run
from timm_accel.report import WriteReportCallback, report
from timm_accel.report.examples import augmented_examples

SMALL = {"model": "test_resnet", "image_size": 32, "num_epochs": 2, "batch_size": 4, "num_workers": 0,
         "warmup_epochs": 0, "opt": "adamw", "lr": 1e-3}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("callback") / "data", {"cat": 9, "dog": 9})


def page_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_is_that_of_the_command_but_opens_no_data_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("timm_accel.report.page.data_of_run", lambda *_: 1 / 0)
        build_run(Recipe(data_dir=str(data), run_dir=str(tmp_path / "run"), **SMALL), [WriteReportCallback]).train()
    written = page_of(tmp_path / "run")
    assert written.count('alt="augmented training image') == 8
    assert "<figcaption>Calibration</figcaption>" in written
    report(tmp_path / "run", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == written


class Ends(Callback):
    """Ends the run after its first epoch."""

    def __init__(self, **how: bool) -> None:
        self.how = how

    def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.request_stop("Enough.", **self.how)


@pytest.mark.parametrize(("how", "has_page"), [({}, True), ({"failed": True}, False), ({"interrupted": True}, False)])
def test_a_run_that_failed_or_was_interrupted_has_no_page(how: dict[str, bool], has_page: bool, tmp_path: Path) -> None:
    callbacks = [CsvHistoryCallback, Ends(**how), WriteReportCallback]
    trainer = make_trainer(callbacks=callbacks, run_dir=tmp_path / "run")
    if has_page:
        fit(trainer)
    else:
        with pytest.raises((RuntimeError, SystemExit)):
            fit(trainer)
    assert (tmp_path / "run" / "report.html").exists() == has_page


def test_a_trainer_in_own_code_gets_a_page_of_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_trainer(callbacks=[CsvHistoryCallback, WriteReportCallback], run_dir=tmp_path), eval_dataset=tiny_data(6))
    assert f"Report: {tmp_path}/report.html\n" in capsys.readouterr().out
    assert "<figcaption>Loss</figcaption>" in page_of(tmp_path)
    assert "The run has no weights yet" in page_of(tmp_path)
    with refused(ValueError, "Expected run_dir to be a folder, since WriteReportCallback", "None"):
        make_trainer(callbacks=[WriteReportCallback])


@pytest.mark.parametrize("train_set", [None, tiny_data()])
def test_training_data_of_another_kind_have_no_examples(train_set: Any) -> None:
    assert augmented_examples(Recipe(), train_set) == ([], [])


def test_whatever_goes_wrong_with_the_page_is_one_sentence_and_the_run_stands(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(data_dir=str(data), run_dir=str(tmp_path / "full"), **SMALL | {"num_epochs": 1})

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate 3 TB")

    monkeypatch.setattr("timm_accel.report.page.score_images", out_of_memory)
    build_run(recipe, [WriteReportCallback]).train()
    assert "The images could not be evaluated: CUDA out of memory. Tried to allocate 3 TB" in page_of(tmp_path / "full")

    trainer = make_trainer(callbacks=[CsvHistoryCallback, WriteReportCallback], run_dir=tmp_path / "run")
    monkeypatch.setattr("timm_accel.report.callback.page_of", lambda *_, **__: 1 / 0)
    capsys.readouterr()
    fit(trainer)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "report" in line]
    assert line == "The report could not be written: ZeroDivisionError: division by zero"
    assert trainer.num_updates == 8

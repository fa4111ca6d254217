"""The end of a run: its results, and the commands that come next."""

import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data

from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.callbacks import Callback, PrintResultsCallback, SaveBestCallback, SaveStateCallback
from timm_accel.callbacks.output import print_results


class Stopping(Callback):
    def __init__(self, **how: bool) -> None:
        self.how = how

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.request_stop("Stop.", **self.how)


def train(folder: Path, run_dir: Path, results: PrintResultsCallback, *callbacks: Any) -> None:
    model, data = create_classifier("test_resnet", 3, image_size=32)
    sets = create_datasets(32, data["mean"], data["std"], folder / "train", folder / "val")
    trainer = make_trainer(TimmMixupTrainer, model, num_class=3, ema_decay=0.0, run_dir=run_dir,
                           loss_func=torch.nn.CrossEntropyLoss(),
                           callbacks=[SaveBestCallback(), SaveStateCallback, *callbacks, results])  # fmt: skip
    fit(trainer, *sets, num_epochs=1, train_dataloader_kwargs=NO_WORKERS, eval_dataloader_kwargs=NO_WORKERS)


def test_the_end_tells_results_and_three_commands_with_quoted_paths(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, data = tmp_path / "my runs" / "it's", tmp_path / "data"
    train(image_folder, run_dir, PrintResultsCallback(data))
    lines = capsys.readouterr().out.splitlines()[-6:]
    assert lines[0].startswith("Best accuracy ")
    assert lines[0].endswith(f" in epoch 1: weights in {run_dir / 'best'}")
    assert lines[1].startswith("Best ema_model_accuracy ")
    assert lines[1].endswith(f" in epoch 1: weights in {run_dir / 'best_ema'}")
    assert lines[2] == "Next:"
    image = str(image_folder / "val" / "cat" / "000.png")
    assert [shlex.split(line) for line in lines[3:]] == [
        ["timm-accel", "predict", str(run_dir), image],
        ["timm-accel", "evaluate", str(run_dir), str(data)],
        ["timm-accel", "export", str(run_dir), "model.onnx"],
    ]


@pytest.mark.parametrize("data", [None, {"train": "a"}, tiny_data(3)])
def test_data_without_a_path_is_a_word(
    data: Any, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(image_folder, tmp_path / "run", PrintResultsCallback(data))
    assert f"  timm-accel evaluate {tmp_path / 'run'} DATA\n" in capsys.readouterr().out


def test_an_image_that_is_no_file_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    for path, shown in ((tmp_path / "cat.png", str(tmp_path / "cat.png")), (tmp_path / "cats.tar/cat.png", "IMAGE")):
        dataset = SimpleNamespace(filename=lambda number, absolute, path=path: str(path))
        assert print_results._image_of(dataset) == shown
    assert print_results._image_of([1, 2]) == "IMAGE"


def test_a_path_in_the_home_folder_is_short_and_a_shell_expands_it(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = tmp_path / ".cache" / "my digits"
    data.mkdir(parents=True)
    train(image_folder, tmp_path / "run", PrintResultsCallback(data))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "evaluate" in line]
    assert line == "  timm-accel evaluate ~/run ~/'.cache/my digits'"
    shell = subprocess.run(["sh", "-c", f"printf '%s\n' {line}"], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines()[2:] == [str(tmp_path / "run"), str(data)]


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("~x", "'~x'"),
        ("homes", "homes"),
        ("a/b c", "'a/b c'"),
        ("/home/me", "/home/me"),
        ("/home/men/a", "/home/men/a"),
    ],
)
def test_other_words_are_quoted_alone(word: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert print_results._word(word) == shown


def test_a_model_that_timm_cannot_rebuild_has_results_but_no_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [SaveBestCallback("eval_loss_epoch", False), PrintResultsCallback]
    fit(make_trainer(callbacks=callbacks, run_dir=tmp_path), eval_dataset=tiny_data(6))
    out = capsys.readouterr().out
    assert out.startswith("Best eval_loss_epoch ")
    assert "timm-accel" not in out


def test_a_run_without_best_weights_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_trainer(callbacks=[PrintResultsCallback], run_dir=tmp_path), eval_dataset=tiny_data(6))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("has_recipe", [True, False])
def test_an_interrupted_run_tells_how_to_resume_instead(
    has_recipe: bool, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "a run"
    run_dir.mkdir()
    if has_recipe:
        (run_dir / "recipe.yaml").write_text("")
    with pytest.raises(SystemExit, match="75"):
        train(image_folder, run_dir, PrintResultsCallback(), Stopping(interrupted=True))
    out = capsys.readouterr().out
    assert "Next:" not in out
    command = f"To resume: timm-accel train --config '{run_dir / 'recipe.yaml'}' --resume auto\n"
    assert (command in out) == has_recipe


def test_a_failed_run_prints_no_results(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"Stop\."):
        train(image_folder, tmp_path / "run", PrintResultsCallback(), Stopping(failed=True))
    assert "Best" not in capsys.readouterr().out


def test_a_run_that_fails_after_its_best_weights_prints_no_results(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Callback):
        def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_stop("Stop.", failed=True)

    with pytest.raises(RuntimeError, match=r"Stop\."):
        train(image_folder, tmp_path / "run", PrintResultsCallback(), Failing())
    assert (tmp_path / "run" / "best").is_dir()
    assert "Best" not in capsys.readouterr().out


@pytest.mark.parametrize(("num_processes", "shown"), [(1, 1), (2, 0)])
def test_the_command_that_resumes_is_that_of_one_process(num_processes: int, shown: int, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    printed: list[str] = []
    run = SimpleNamespace(accelerator=SimpleNamespace(num_processes=num_processes))
    trainer: Any = SimpleNamespace(run_dir=tmp_path, current_run=lambda: run, print=printed.append)
    PrintResultsCallback()._print_resume(trainer)
    assert len(printed) == shown

"""A dry run and a refused start leave the run folder as it was; `batch_size="auto"` is a number of the run."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_images
from forked import run
from ranks import on_ranks
from refusal import refused
from tiny_runs import differences

from timm_accel import Recipe
from timm_accel.commands.train import train
from timm_accel.recipes import Run, build_run, building

WORKER = Path(__file__).parent / "auto_batch_worker.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "data", {"cat": 8, "dog": 8, "owl": 7})
    return tmp_path


def build(folder: Path, **options: Any) -> Run:
    small = {"model": "test_resnet", "image_size": 32, "batch_size": 4, "num_epochs": 2, "num_workers": 0}
    return build_run(Recipe(**(small | {"data_dir": str(folder / "data"), "run_dir": str(folder / "run")} | options)))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_dry_run_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = build(folder, run_dir=str(folder / "runs" / "first"))
    run.dry_run()
    shown = capsys.readouterr().out
    assert "1 state" not in shown
    assert "3 states of" in shown
    assert "estimate" in shown
    assert run.trainer.num_updates == 4  # one epoch of 18 images
    assert not (folder / "runs").exists()
    with refused(RuntimeError, "Expected a run that has not been trained", "Call build_run() again"):
        run.train()


def test_a_dry_run_of_a_resume_changes_no_file(folder: Path) -> None:
    build(folder).train()
    before = files(folder / "run")
    build(folder, num_epochs=3, resume="auto").dry_run()
    assert files(folder / "run") == before


def test_a_dry_run_refuses_what_training_refuses(folder: Path) -> None:
    build(folder).train()
    before = files(folder / "run")
    with refused(FileExistsError, "run_dir to hold no run yet"):
        build(folder).dry_run()
    with refused(ValueError, "of another run", "recipe.smoothing"):
        build(folder, smoothing=0.0, resume="auto").dry_run()
    assert files(folder / "run") == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"weights": "nowhere/model.pt"}, FileNotFoundError),
        ({"eval_split": "test"}, ValueError),
        ({"model": "vit_tiny_patch16_224", "model_args": {"depth": 1}, "eval_image_size": 48}, ValueError),
        ({"scheduler_metric": "eval_los"}, ValueError),
    ],
)
def test_a_refused_start_leaves_nothing(options: dict[str, Any], error: Any, folder: Path) -> None:
    with pytest.raises(error, match="Expected"):
        build(folder, **options).train()
    assert not (folder / "run").exists()


def test_a_refused_start_keeps_what_was_there(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")
    (folder / "run" / "recipe.yaml").write_text("mine too")
    with refused(FileNotFoundError, "nowhere"):
        build(folder, weights="nowhere/model.pt")
    assert {*files(folder / "run")} == {"notes.txt", "recipe.yaml"}


def test_a_failure_after_an_update_keeps_the_run(folder: Path) -> None:
    run = build(folder)

    def fail() -> None:
        raise OSError("the disk")

    run.trainer.train_epoch_end = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk"):
        run.train()
    assert {"recipe.yaml", "split.csv"} <= {*files(folder / "run")}


def test_the_training_split_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = building.Source._open
    monkeypatch.setattr(building.Source, "_open", lambda self, split: opened.append(split) or original(self, split))
    build(folder)
    assert sorted(opened) == ["train", "val"]


def state_of(run_dir: Path) -> dict[str, Any]:
    (state,) = (run_dir / "state").glob("0*")
    shared = torch.load(state / "common.pt", weights_only=True)
    return {name: shared[name] for name in ("model", "optimizer", "components", "scheduler")}


@pytest.mark.parametrize(
    "options",
    [
        {"base_batch_size": 64, "opt": "adamw"},
        {"distill_kind": "feature", "resolutions": (16, 32), "freeze_epochs": 1},
        {"drop_path_rate": 0.2, "gradient_accumulation_steps": 2, "mixup": 0.0, "cutmix": 0.0},
    ],
)
def test_a_found_batch_size_gives_the_bits_of_a_typed_one(options: dict[str, Any], folder: Path) -> None:
    found = build(folder, batch_size="auto", run_dir=str(folder / "found"), **options)
    size = found.recipe.batch_size
    assert size == 18  # all training images: a small model fits
    found.train()
    assert yaml.safe_load((folder / "found" / "recipe.yaml").read_text())["batch_size"] == size
    build(folder, batch_size=size, run_dir=str(folder / "typed"), **options).train()
    assert differences(state_of(folder / "found"), state_of(folder / "typed")) == []


def test_a_resume_takes_the_batch_size_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(folder, batch_size=6).train()
    monkeypatch.setattr(building, "find_batch_size", None)  # no new search
    run = build(folder, batch_size="auto", resume="auto", num_epochs=3)
    assert run.recipe.batch_size == 6
    assert "batch_size is 6 per process, as in the run that is resumed." in capsys.readouterr().out
    state = next((folder / "run" / "state").glob("0*"))
    for path in (state, state.parent / "latest"):
        other = build(folder, batch_size="auto", resume=str(path), run_dir=str(folder / "other"), num_epochs=3)
        assert other.recipe.batch_size == 6


@pytest.mark.parametrize("size", ["large", 0, 2.5, True])
def test_another_batch_size_is_refused(size: Any) -> None:
    with refused(ValueError, "Expected batch_size to be auto or an integer of at least 1", repr(size)):
        Recipe(batch_size=size)


def test_the_command_has_both_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(
        model="test_resnet", image_size=32, batch_size="auto", num_epochs=1, num_workers=0,
        data_dir=str(folder / "data"), run_dir=str(folder / "run"),
    )  # fmt: skip
    train(recipe, dry_run=True)
    assert not (folder / "run").exists()
    assert "batch_size is 18 per process" in capsys.readouterr().out
    train(recipe)
    assert yaml.safe_load((folder / "run" / "recipe.yaml").read_text())["batch_size"] == 18


def test_two_processes_agree_on_the_smaller_batch_size(folder: Path) -> None:
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = run(on_ranks([2], WORKER, folder), env=env)
    assert result.returncode == 0, result.stderr[-4000:]
    assert [(folder / f"{rank}.txt").read_text() for rank in (0, 1)] == ["4", "4"]
    assert result.stdout.count("batch_size is 4 per process") == 1
    assert result.stdout.count("estimate") == 1
    assert not (folder / "run").exists()

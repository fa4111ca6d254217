"""A run that resumes with other data says so, and compares no new value with an old one of other images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import NO_WORKERS, fit, make_trainer
from torch import nn

from timm_accel.callbacks import EarlyStoppingCallback, SaveBestCallback, SaveStateCallback
from timm_accel.data.datasets import ImageFolderDataset
from timm_accel.states.folder import newest_state


def to_tensor(image: Any) -> torch.Tensor:
    return torch.tensor(list(image.resize((8, 8)).tobytes())).reshape(8, 8, 3).permute(2, 0, 1) / 255


def resumed(run_dir: Path, data: Path, num_epochs: int, lr: float = 0.0, **options: Any) -> Any:
    """A run with a learning rate of 0, whose metric stays the same on the same images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    watched = {"watch_metric": "eval_loss_epoch", "greater_is_better": False}
    callbacks = [SaveBestCallback(**watched), EarlyStoppingCallback(**watched, patience=99), SaveStateCallback]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = make_trainer(model=model, optimizer=optimizer, run_dir=run_dir, callbacks=callbacks)
    sets = [ImageFolderDataset(data / split, to_tensor) for split in ("train", "val")]
    return fit(trainer, *sets, num_epochs=num_epochs, resume_from="auto", eval_dataloader_kwargs=NO_WORKERS, **options)


def best_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "best" / "config.json").read_text())["best"]


def test_changed_data_are_said_in_one_line_each_and_then_no_more(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    resumed(run_dir, image_folder, 1)
    resumed(run_dir, image_folder, 2)
    assert "differ" not in capsys.readouterr().out
    (image_folder / "train" / "cat" / "000.png").rename(image_folder / "train" / "dog" / "lost.png")
    (image_folder / "val" / "owl" / "002.png").unlink()
    resumed(run_dir, image_folder, 3)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "differ" in line] == [
        "The training data differ from the state's: 1 removed, 1 added, such as 'cat/000.png', 'dog/lost.png'. The run "
        "continues with them.",
        "The evaluation data differ from the state's: 1 removed, such as 'owl/002.png'. The run continues with them.",
    ]
    resumed(run_dir, image_folder, 4)
    assert "differ" not in capsys.readouterr().out


def test_the_best_value_of_other_evaluation_images_is_not_compared(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    resumed(run_dir, image_folder, 2)
    assert best_of(run_dir)["epoch"] == 1
    first = best_of(run_dir)["value"]
    trainer = resumed(run_dir, image_folder, 3)
    assert best_of(run_dir)["epoch"] == 1
    (image_folder / "val" / "dog" / "000.png").unlink()
    trainer = resumed(run_dir, image_folder, 4)
    best = best_of(run_dir)
    assert best["epoch"] == 4
    assert best["value"] > first  # worse, but of other images
    assert f"eval_loss_epoch {first:.4f} in epoch 1 is of other evaluation images" in capsys.readouterr().out
    stopping = next(each for each in trainer.callback_handler if isinstance(each, EarlyStoppingCallback))
    assert (stopping.best, stopping.epochs_without) == (best["value"], 0)


def test_the_best_value_stays_forgotten_when_the_run_stops_before_a_new_one(image_folder: Path, tmp_path: Path) -> None:
    callback = SaveBestCallback("accuracy")
    old = {"model": {"metric": "accuracy", "value": 0.9, "epoch": 3}}
    callback.best = dict(old)
    callback._forget(callback.best)
    after = SaveBestCallback("accuracy")
    after.best = dict(old)  # as the folder still holds it
    after.load_state_dict(callback.state_dict())
    assert after.best == {}
    after.best = {"model": {"metric": "accuracy", "value": 0.5, "epoch": 4}}  # the folder is newer
    after.load_state_dict(callback.state_dict())
    assert after.best["model"]["value"] == 0.5


def test_the_lists_are_written_once_and_a_state_holds_digests_alone(image_folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    resumed(run_dir, image_folder, 3)
    lists = sorted((run_dir / "state" / "data").iterdir())
    data = newest_state(run_dir / "state", print).manifest["data"]  # type: ignore[union-attr]
    assert sorted(f"{each['digest'][:16]}.npz" for each in data.values()) == [path.name for path in lists]
    assert len(json.dumps(data)) < 600
    assert {kind: each["images"] for kind, each in data.items()} == {"training": 19, "evaluation": 9}


def test_a_run_resumes_without_its_lists(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    resumed(run_dir, image_folder, 1)
    for path in (run_dir / "state" / "data").iterdir():
        path.unlink()
    (image_folder / "train" / "cat" / "000.png").unlink()
    with pytest.warns(UserWarning, match="images 19 before, 18 now"):
        resumed(run_dir, image_folder, 2)
    assert "19 images before, 18 now; the list of the earlier ones is lost. The run" in capsys.readouterr().out

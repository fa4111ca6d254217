"""Best weights that are missing or damaged when a run resumes: reported, and restored or saved again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import contents, refused
from resumed_runs import cut, make_run, same_outcome, sign_again, states, train

from timm_accel.callbacks import Callback
from timm_accel.callbacks.recorded_metrics import is_better
from timm_accel.models import signed_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best weights of both are those of epoch 1 after one epoch, whose state is number 7."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(make_run(run_dir))
    first = run_dir.parent / "first"
    train(make_run(first), num_epochs=1)
    return run_dir


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def best_of(value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["best"] = value
        (folder / "config.json").write_text(json.dumps(signed_config(folder, config)))

    return edit


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, "to hold the best weights, but it is missing."),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors' is missing."),
    "no config": (lambda folder: (folder / "config.json").unlink(), "but 'config.json' is missing."),
    "other weights": (flip, "has changed since"),
    "no JSON": (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "Expected config.json to be JSON"),
    "no best": (best_of(None), "a finite value and an epoch, but got 'None'"),
    "NaN": (best_of({"metric": "eval_loss_epoch", "value": float("nan"), "epoch": 1}), "a finite value and an epoch"),
    "text": (best_of({"metric": "eval_loss_epoch", "value": "0.1", "epoch": 1}), "a finite value and an epoch"),
    "list": (best_of([1]), "a finite value and an epoch, but got '[1]'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_state_of_their_epoch_restores_them(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGE[kind]
    run = tmp_path / "run"
    shutil.copytree(whole.parent / "first", run)
    assert states(run)[-1].name.endswith("epoch_1_batch_0")
    before = contents(run / "best")
    damage(run / "best")
    train(make_run(run), num_epochs=1, resume_from="auto")  # finished: nothing but the weights is written
    said = capsys.readouterr().out
    assert words in said
    assert f"Restored the weights in {str(run / 'best')!r} from {str(states(run)[-1])!r}." in said
    assert contents(run / "best") == before


class Copying(Callback):
    """Copies the best weights when all is restored, before later epochs replace them."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_resumed(self, trainer: Any, state: Path, **kwargs: Any) -> None:
        for name in ("best", "best_ema"):
            shutil.copytree(self.run / name, self.run.parent / "copies" / name)


@pytest.mark.parametrize("lost", [["best"], ["best_ema"], ["best", "best_ema"]])
@pytest.mark.parametrize("newer", ["whole", "damaged", "a link"])
def test_an_older_state_of_their_epoch_restores_them(
    newer: str, lost: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cut(whole, 10, tmp_path / "run")  # within the second epoch
    shutil.copytree(states(run)[7], run / "state" / "000900_epoch_1_batch_0")
    for name in lost:
        flip(run / name)
    source = run / "state" / "000900_epoch_1_batch_0"
    if newer == "damaged":
        (source / "rank_0.pt").write_bytes(b"")
    elif newer == "a link":
        source.rename(tmp_path / "aside")
        source.symlink_to(tmp_path / "aside")
    trainer = make_run(run)
    trainer.callback_handler.add_callback(Copying(run))
    train(trainer, resume_from=states(run)[-2], num_epochs=2)
    restored = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Restored the weights")]
    holder = source if newer == "whole" else whole.parent / "run" / "state" / states(whole)[7].name
    assert [line.split("'")[1] for line in restored] == [str(run / name) for name in sorted(lost)[::-1]]
    assert {Path(line.split("'")[3]).name for line in restored} == {holder.name}
    for name in lost:
        assert contents(run.parent / "copies" / name) == contents(whole.parent / "first" / name)


def test_a_state_of_their_epoch_that_had_others_does_not_restore_them(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as that of a run with other evaluation images."""
    run = cut(whole, 10, tmp_path / "run")
    common = torch.load(states(run)[7] / "common.pt", weights_only=True)
    common["callbacks"]["SaveBestCallback"]["best"]["model"]["value"] += 1
    torch.save(common, states(run)[7] / "common.pt")
    sign_again(states(run)[7])
    flip(run / "best")
    train(make_run(run), resume_from="auto")
    assert "Restored" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_next_evaluation_saves_them_again(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGE[kind]
    run = cut(whole, 10, tmp_path / "run")  # within the second epoch
    shutil.rmtree(states(run)[7])  # that of their epoch
    damage(run / "best")
    train(make_run(run), resume_from="auto")
    said = capsys.readouterr().out
    assert words in said
    assert "the next evaluation saves the best weights again" in said
    assert "Restored the weights" not in said
    assert json.loads((run / "best" / "config.json").read_text())["best"]["epoch"] in (2, 3)


def test_nothing_is_reported_about_whole_weights(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cut(whole, 10, tmp_path / "run")
    train(make_run(run), resume_from="auto")
    said = capsys.readouterr().out
    assert "Expected" not in said
    assert "Restored" not in said
    assert same_outcome(whole, run) is None


def test_a_run_in_another_folder_begins_to_track_them_without_a_word(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_run(tmp_path / "new"), resume_from=states(whole)[10])
    assert "best weights" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["best", "best/config.json", "best/model.safetensors"])
def test_something_else_in_their_place_is_refused_before_training(name: str, whole: Path, tmp_path: Path) -> None:
    run = cut(whole, 10, tmp_path / "run")
    if name == "best":
        shutil.rmtree(run / name)
        (run / name).write_text("")
    else:
        (run / name).unlink()
        (run / name).mkdir()
    with refused(FileExistsError, str(run / name), "got something else", "Move it away"):
        train(make_run(run), resume_from="auto")


@pytest.mark.parametrize("best", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("greater", [True, False])
def test_a_best_value_that_is_not_finite_is_beaten_by_any_other(best: float, greater: bool) -> None:
    assert is_better(0.5, best, greater)
    assert not is_better(best, 0.5, greater)

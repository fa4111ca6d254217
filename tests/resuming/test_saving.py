"""When a state is written, what it holds, and what happens when it cannot be written."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from resumed_runs import (
    Noting,
    cut,
    every_update,
    full_disk,
    make_run,
    outcome,
    positions,
    same_outcome,
    settle,
    states,
    train,
)
from terminals import Terminal
from timm.optim import create_optimizer_v2
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import (
    Callback,
    CsvHistoryCallback,
    PrintMetricsCallback,
    ProgressBarCallback,
    SaveStateCallback,
    TimeLimitCallback,
)
from timm_accel.states import folder as state_module


def run_with(callback: Any, run_dir: Path, **options: Any) -> Any:
    """5 batches an epoch, 4 epochs."""
    return fit(make_trainer(run_dir=run_dir, callbacks=[callback]), tiny_data(20), **({"num_epochs": 4} | options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["1.0", "2.0", "3.0", "4.0"]),
        ({"every_n_epochs": 2}, ["2.0", "4.0"]),
        ({"every_n_epochs": 3}, ["3.0", "4.0"]),  # always at the end of the run
        ({"every_n_epochs": None}, ["4.0"]),
        ({"every_n_epochs": None, "every_n_updates": 7}, ["1.2", "2.4", "4.0"]),
        ({"every_n_epochs": 2, "milestone_every_n_epochs": 3}, ["2.0", "3.0", "4.0"]),
    ],
)
def test_states_come_when_they_are_due(options: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    run_with(SaveStateCallback(keep=100, keep_when_done=100, **options), tmp_path)
    assert positions(tmp_path) == expected


def test_with_accumulation_only_complete_updates_are_saved(tmp_path: Path) -> None:
    run_with(every_update(), tmp_path, num_epochs=1, gradient_accumulation_steps=2)
    assert positions(tmp_path) == ["0.2", "0.4", "0.5", "1.0"]


def test_minutes_are_counted_from_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Callback):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            clock[0] += 60

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    trainer = make_trainer(
        run_dir=tmp_path, callbacks=[Slow, SaveStateCallback(every_minutes=3, keep=100, keep_when_done=100)]
    )
    fit(trainer, tiny_data(20), num_epochs=2)
    assert positions(tmp_path) == ["0.3", "1.0", "1.3", "2.0"]


def test_the_newest_are_kept_and_the_milestones(tmp_path: Path) -> None:
    run_with(SaveStateCallback(every_n_updates=2, keep=2, milestone_every_n_epochs=2, keep_when_done=3), tmp_path)
    assert positions(tmp_path) == ["2.0", "3.3", "3.5", "4.0"]
    assert [json.loads((folder / "manifest.json").read_text())["milestone"] for folder in states(tmp_path)] == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["4.0"]),
        ({"keep_when_done": 2}, ["3.0", "4.0"]),
        ({"keep": 1, "keep_when_done": 3}, ["4.0"]),
        ({"milestone_every_n_epochs": 2}, ["2.0", "4.0"]),
        ({"milestone_every_n_epochs": 3}, ["3.0", "4.0"]),
        ({"milestone_every_n_epochs": 4, "keep_when_done": 2}, ["3.0", "4.0"]),
    ],
)
def test_a_finished_run_keeps_its_last_state_and_tells_what_the_states_take(
    options: dict[str, Any], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with(SaveStateCallback(**options), tmp_path)
    assert positions(tmp_path) == expected
    root = tmp_path / "state"
    size = sum(path.lstat().st_size for path in root.rglob("*"))
    line = f"The states take {size / 1e6:.1f} MB ({len(expected)} in {str(root)!r})."
    assert line in capsys.readouterr().out


def test_a_run_that_is_interrupted_keeps_all_its_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(make_trainer(run_dir=tmp_path, callbacks=[SaveStateCallback(), Interrupt]), tiny_data(20), num_epochs=4)
    assert positions(tmp_path) == ["1.0", "2.0", "2.1"]
    assert "The states take" not in capsys.readouterr().out


class Interrupt(Callback):
    def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.current_run().epoch == 2:
            trainer.request_stop("Enough.", interrupted=True)


def test_a_state_is_written_after_everything_else_of_its_update(tmp_path: Path) -> None:
    class Last(Callback):
        updates: list[int] = []  # noqa: RUF012

        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            settle(trainer)
            self.updates.append(len(states(tmp_path)))
            assert all(parameter.grad is None for parameter in trainer.model.parameters())

    trainer = make_trainer(TimmMixupTrainer, ema_decay=0.1, run_dir=tmp_path, callbacks=[every_update(), Last])
    fit(trainer, tiny_data(20), num_epochs=1)
    assert Last.updates == [0, 1, 2, 3, 4]  # after the callbacks, whatever their order
    saved = outcome(tmp_path)["state"]["common.pt"]["components"]["ema_model"]
    assert all(
        torch.equal(saved[f"module.{key}"], value) for key, value in trainer.ema_model.module.state_dict().items()
    )


def test_any_callback_may_ask_for_a_state(tmp_path: Path) -> None:
    class Asking(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 3:
                trainer.request_save(milestone=True)

    trainer = make_trainer(run_dir=tmp_path, callbacks=[Asking])
    trainer.request_save()  # outside a run: nothing to save
    fit(trainer, tiny_data(20))
    assert positions(tmp_path) == ["0.3"]
    with refused(ValueError, "run_dir to be given", "states are saved there", "got None", "Pass run_dir"):
        make_trainer().request_save()


def test_a_state_asked_for_between_training_and_evaluation_continues_there(tmp_path: Path) -> None:
    class Asking(Callback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_save()

        def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_save()

    def run(run_dir: Path, **options: Any) -> Any:
        callbacks = [Asking, SaveStateCallback(keep=100, keep_when_done=100), CsvHistoryCallback, PrintMetricsCallback]
        return train(make_run(run_dir, callbacks=callbacks), **options)

    reference = run(tmp_path / "whole")
    stages = [
        json.loads((folder / "manifest.json").read_text())["progress"]["stage"] for folder in states(tmp_path / "whole")
    ]
    assert stages == ["evaluate", "end", "train"] * 3
    for number in range(8):
        resumed_dir = cut(tmp_path / "whole", number, tmp_path / str(number))
        resumed = run(resumed_dir, resume_from="auto")
        assert len(resumed.rates) == len(reference.rates) - 7 * (number // 3 + 1)
        assert same_outcome(tmp_path / "whole", resumed_dir) is None, number


def test_the_screen_shows_a_resumed_epoch_as_it_stands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = [every_update(), ProgressBarCallback, PrintMetricsCallback]
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    train(make_run(tmp_path / "whole", callbacks=callbacks), num_epochs=1)
    lines = capfd.readouterr().out.splitlines()
    resumed_dir = cut(tmp_path / "whole", 4, tmp_path / "cut")
    train(make_run(resumed_dir, callbacks=callbacks), num_epochs=1, resume_from="auto")
    shown = capfd.readouterr()
    assert "71%" in terminal.getvalue()  # 5 of 7 batches are done before the first
    first, second, third = shown.out.splitlines()
    assert third.startswith("The states take ")
    assert first.startswith("Resumed from '")
    assert first.endswith("000005_epoch_0_batch_5': 0 of 1 epochs are done, and 5 batches of the next.")
    assert second.rpartition("  ")[0] == lines[0].rpartition("  ")[0]  # all but the seconds


def test_a_write_that_fails_is_reported_and_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Disk(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            settle(trainer)
            if trainer.num_updates in (1, 8):
                monkeypatch.setattr(state_module, "_save", full_disk)
            if trainer.num_updates in (4, 11):
                monkeypatch.undo()

    train(make_run(tmp_path / "run", callbacks=[Disk, every_update()]))
    said = [line for line in capsys.readouterr().out.splitlines() if "No space left" in line]
    assert len(said) == 3 + 3  # updates 1 to 3 and 8 to 10
    assert "none was written yet" in said[0]
    assert "the last one is" in said[3]
    assert "000005_epoch_1_batch_0" in said[3]
    assert "Free disk space" in said[3]
    assert positions(tmp_path / "run")[:6] == ["0.4", "0.5", "0.6", "0.7", "1.0", "1.4"]


def test_what_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"table": np.zeros(3)}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    trainer = make_trainer(run_dir=tmp_path, callbacks=[Odd, SaveStateCallback])
    with refused(TypeError, "Odd", "['table']", "plain values", "numpy.ndarray", "state_dict()"):
        fit(trainer)
    assert trainer.num_updates == 0


def test_weights_that_are_not_finite_push_out_no_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Breaking(Noting):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            batch_output = super().calculate_train_batch_loss(batch)
            if self.num_updates >= 3:
                batch_output["loss"] = batch_output["loss"] * float("nan")
            return batch_output

    train(make_run(tmp_path, Breaking, callbacks=[every_update(keep=2)]), num_epochs=2)
    assert positions(tmp_path) == ["0.2", "0.3"]
    assert "the loss is not finite" in capsys.readouterr().out


def test_a_state_that_cannot_be_deleted_does_not_count_as_one_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if path.name.startswith("000001") and not path.name.endswith(".unfinished"):
            raise OSError(39, "Directory not empty")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    train(make_run(tmp_path, callbacks=[every_update(keep=1)]), num_epochs=1)
    assert positions(tmp_path) == ["0.1", "1.0"]
    assert "was not" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["every_n_epochs", "every_n_updates", "keep", "milestone_every_n_epochs", "keep_when_done"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_a_count_below_one_is_refused(name: str, value: Any) -> None:
    with refused(ValueError, name, "at least 1", f"got {value!r}"):
        SaveStateCallback(**{name: value})


def test_keeping_none_is_refused() -> None:
    for name in ("keep", "keep_when_done"):
        with refused(ValueError, name, "at least 1", "got None"):
            SaveStateCallback(**{name: None})


@pytest.mark.parametrize("value", [0, -1.0, "2"])
def test_minutes_that_are_not_positive_are_refused(value: Any) -> None:
    with refused(ValueError, "every_minutes", "positive", f"got {value!r}"):
        SaveStateCallback(every_minutes=value)
    with refused(ValueError, "max_minutes", "positive", f"got {value!r}"):
        TimeLimitCallback(value)


def test_a_model_without_running_loss_or_buffers_is_saved_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    fit(make_trainer(model=model, run_dir=tmp_path, callbacks=[SaveStateCallback]), num_epochs=1)
    assert outcome(tmp_path)["state"]["rank_0.pt"]["buffers"] == {}


def test_models_with_extra_state_and_optimizers_without_a_learning_rate_train(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"n": 1}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    model = nn.Sequential(nn.Flatten(), Extra(192, 3))
    fit(make_trainer(model=model, run_dir=tmp_path / "extra", callbacks=[SaveStateCallback]), num_epochs=1)
    model = tiny_model()
    optimizer = create_optimizer_v2(model, "adafactor", lr=None)
    trainer = make_trainer(model=model, optimizer=optimizer, run_dir=tmp_path / "rate", callbacks=[SaveStateCallback])
    fit(trainer, num_epochs=1)
    fit(trainer, num_epochs=2, resume_from="auto")


def test_optimizer_states_keep_their_own_type(tmp_path: Path) -> None:
    def run(run_dir: Path, **options: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).to(torch.bfloat16)
        data = tiny_data(30)
        data.tensors = (data.tensors[0].to(torch.bfloat16), data.tensors[1])
        optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)  # keeps a float32 product of momenta
        trainer = make_trainer(model=model, optimizer=optimizer, run_dir=run_dir, callbacks=[every_update()])
        return fit(trainer, data, **options)

    run(tmp_path / "whole")
    run(cut(tmp_path / "whole", 4, tmp_path / "cut"), resume_from="auto")
    assert same_outcome(tmp_path / "whole", tmp_path / "cut") is None

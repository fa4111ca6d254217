"""The progress bar: what it shows in terminals, in a log, and the time that is left."""

import sys
from typing import Any

import pytest
import torch
from terminals import Clock, open_terminal, resize
from tiny_runs import fit, make_trainer, same_weights, tiny_data
from tqdm.std import Bar

from timm_accel import LoopTrainer, TimmTrainer
from timm_accel.callbacks import Callback, PrintMetricsCallback, ProgressBarCallback
from timm_accel.callbacks.output import progress_bar
from timm_accel.callbacks.output.progress_bar import progress_line
from timm_accel.callbacks.output.time_left import TimeLeft
from timm_accel.states import speed
from timm_accel.states.running_mean import RunningMean

PARTS = {"loss": "loss 0.5324", "lr": "lr 0.00482", "speed": "812 images/s", "left": "1:12:34 left"}


class Ticking(Callback):
    """Lets time pass in each training and evaluation step."""

    def __init__(self, clock: Clock, train: float, evaluate: float = 0.0) -> None:
        self.clock, self.train, self.evaluate = clock, train, evaluate

    def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
        self.clock.now += self.train

    def on_eval_step_start(self, trainer: Any, **kwargs: Any) -> None:
        self.clock.now += self.evaluate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    found.replace(monkeypatch, progress_bar, speed)
    return found


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (79, "train 3/40 45% ████▉        loss 0.5324  lr 0.00482  812 images/s  1:12:34 left"),
        (72, "train 3/40 45%  loss 0.5324  lr 0.00482  812 images/s  1:12:34 left"),
        (66, "train 3/40 45% ████▌       loss 0.5324  812 images/s  1:12:34 left"),
        (45, "train 3/40 45%  loss 0.5324  1:12:34 left"),
        (39, "3/40 45%  loss 0.5324  1:12:34 left"),
        (30, "3/40 45% ███▏     1:12:34 left"),
        (24, "3/40 45%  1:12:34 left"),
        (10, "3/40 45% …"),
    ],
)
def test_a_line_shows_what_matters_most_where_it_is_narrow(width: int, line: str) -> None:
    shown = progress_line(width, Bar.UTF, "train", "3/40", 0.45, PARTS)
    assert len(shown) <= width
    assert shown == line


def test_a_line_without_an_epoch_keeps_its_title() -> None:
    assert progress_line(30, None, "evaluate", "", 0.5, PARTS | {"lr": ""}) == "evaluate 50%  1:12:34 left"


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_the_bar_is_never_wider_than_the_terminal(columns: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, columns)
    fit(
        make_trainer(callbacks=[Ticking(clock, 1.0, 1.0), ProgressBarCallback]),
        eval_dataset=tiny_data(6),
        num_epochs=2,
    )
    assert terminal.widest() < columns
    assert "100%" in terminal.getvalue()
    assert terminal.screen() == [""]  # nothing is left of it


def test_a_terminal_that_gets_narrower_in_between_holds_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)

    class Narrowing(Callback):
        def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.batch_index == 2:
                self.before = len(terminal.getvalue())
                resize(monkeypatch, 40)

    narrowing = Narrowing()
    fit(make_trainer(callbacks=[Ticking(clock, 1.0), narrowing, ProgressBarCallback]), num_epochs=1)
    wide, narrow = terminal.getvalue()[: narrowing.before], terminal.getvalue()[narrowing.before :]
    assert max(map(len, wide.split("\r"))) > 60
    assert 0 < max(map(len, narrow.split("\r"))) < 40


def test_the_bar_tells_loss_rate_speed_and_the_time_left_of_the_run(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 batches of 4 images, 1 s each; 2 evaluation batches, 3 s each."""
    terminal = open_terminal(monkeypatch, 100)
    callbacks = [Ticking(clock, 1.0, 3.0), ProgressBarCallback]
    trainer = fit(make_trainer(callbacks=callbacks), eval_dataset=tiny_data(8), num_epochs=3)
    drawn = [line for line in terminal.drawn() if "left" in line]
    left = [line.rpartition("  ")[2] for line in drawn]
    first = ["00:11 left", "00:10 left", "00:09 left", "00:08 left"]  # evaluations are not yet measured
    second = [
        "00:20 left",
        "00:19 left",
        "00:18 left",
        "00:17 left",
        "00:16 left",
    ]  # two evaluations of 6 s
    last = ["00:10 left", "00:09 left", "00:08 left", "00:07 left", "00:06 left"]
    evaluating = {1: ["00:11 left", "00:08 left"], 2: ["00:16 left", "00:13 left", "00:10 left"]}
    evaluating[3] = ["00:06 left", "00:03 left", "00:00 left"]
    assert [text for text, line in zip(left, drawn, strict=True) if line.startswith("train")] == first + second + last
    for epoch, expected in evaluating.items():
        assert [text for text, line in zip(left, drawn, strict=True) if f"evaluate {epoch}/3" in line] == expected
    assert all("  lr 0.1  4.0 images/s  " in line for line in drawn if line.startswith("train") and " 0%" not in line)
    assert all("  lr " not in line for line in drawn if line.startswith("evaluate"))
    losses = [line.split("loss ")[1].split()[0] for line in drawn if line.startswith("train 3/3 100%")]
    assert losses == [f"{trainer.run_history.get_latest_metric('train_loss_epoch'):.4g}"]


def test_the_time_left_ends_with_the_last_update_of_groups_of_batches(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch, 80)
    options = {"num_epochs": 3, "gradient_accumulation_steps": 2, "max_num_train_steps": 3}
    fit(make_trainer(callbacks=[Ticking(clock, 1.0), ProgressBarCallback]), **options)
    left = [line.rpartition("  ")[2] for line in terminal.drawn() if "left" in line and " 0%" not in line]
    assert left == [f"00:0{seconds} left" for seconds in (6, 6, 4, 4, 2, 2)]


def test_an_evaluation_within_an_epoch_is_no_progress_of_the_training(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch, 80)

    class Peeking(Callback):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer._run_eval_epoch(trainer._eval_dataloader, is_intermediate=True)

    callbacks = [Peeking, Ticking(clock, 1.0, 1.0), ProgressBarCallback]
    fit(make_trainer(callbacks=callbacks), eval_dataset=tiny_data(8), num_epochs=1)
    training = [line.split()[2] for line in terminal.drawn() if line.startswith("train")]
    assert training == ["0%", "25%", "50%", "75%", "100%"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(14.9, []), (15.0, ["train 1/2 100%"]), (30.0, ["train 1/2 50%", "train 1/2 100%"])],
)
def test_a_log_gets_at_most_one_line_a_minute(
    seconds: float, shown: list[str], clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 batches: the fourth ends an epoch of 60 s."""
    fit(make_trainer(callbacks=[Ticking(clock, seconds), ProgressBarCallback, PrintMetricsCallback]), num_epochs=2)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    progress = [line for line in lines if line.startswith("train")]
    expected = [*shown, *(line.replace("1/2", "2/2") for line in shown)]
    assert [line.split("  ")[0] for line in progress] == expected
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert err == ""
    assert "\r" not in out


def test_an_evaluation_of_minutes_shows_life_in_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    fit(
        make_trainer(callbacks=[Ticking(clock, 1.0, 40.0), ProgressBarCallback]),
        eval_dataset=tiny_data(16),
        num_epochs=1,
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["evaluate 1/1 50%", "evaluate 1/1 100%"]  # after 84 s and 164 s


def test_lines_of_the_log_stand_above_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)

    class Talking(Callback):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.print("one", 2, sep="-")
            trainer.print("\nupstream")

    fit(make_trainer(callbacks=[Ticking(clock, 1.0), ProgressBarCallback, Talking]), num_epochs=1)
    assert terminal.screen() == ["one-2", "", "upstream"] * 4 + [""]


def test_sentences_of_a_run_fit_the_terminal_and_commands_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 30)

    class Talking(Callback):
        def on_training_run_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.print("The states take 7.6 MB (1 in 'my runs/shoes/state').")
            trainer.print("To resume: timm-accel train --config recipe.yaml")
            trainer.print("1   2", "  timm-accel export runs/shoes model.onnx", sep="\n", end="\n\n")

    fit(make_trainer(callbacks=[Talking]), num_epochs=1)
    assert terminal.screen() == [
        "The states take 7.6 MB (1 in",
        "  'my runs/shoes/state').",
        "To resume:",
        "  timm-accel train --config recipe.yaml",
        "1   2",
        "  timm-accel export runs/shoes model.onnx",
        "",
        "",
    ]


def test_what_others_write_replaces_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)
    long = "'shoes/sandal/broken.jpg' cannot be read (Truncated File Read) and is skipped; further ones are counted."

    class Saying(Callback):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            print(long, file=sys.stderr)  # as a loader worker does, which knows of no bar

    fit(make_trainer(callbacks=[Ticking(clock, 1.0), ProgressBarCallback, Saying]), num_epochs=1)
    assert terminal.screen() == [long] * 4 + [""]
    assert "25%" in terminal.getvalue()


def test_a_message_after_an_error_does_not_stick_to_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)

    class Failing(LoopTrainer):
        def after_update(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make_trainer(Failing, callbacks=[Ticking(clock, 1.0), ProgressBarCallback]))
    terminal.write("Traceback")
    assert terminal.screen() == ["Traceback"]
    assert "25%" in terminal.getvalue()


def test_the_screen_changes_no_weights(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*callbacks: Any) -> torch.nn.Module:
        trainer = make_trainer(TimmTrainer, num_classes=3, callbacks=callbacks)
        return fit(trainer, eval_dataset=tiny_data(6)).model

    plain = trained()
    open_terminal(monkeypatch, 80)
    assert same_weights(plain, trained(Ticking(clock, 1.0), ProgressBarCallback, PrintMetricsCallback))


@pytest.mark.parametrize("kind", ["plain", "weighted", "sum", "empty"])
def test_the_check_of_the_loss_reads_its_mean_back(kind: str) -> None:
    mean = RunningMean(torch.device("cpu"))
    if kind != "empty":
        weight = torch.tensor(0.5) if kind == "weighted" else None
        mean.update(torch.tensor(1.0), 3, weight, kind == "sum")
        mean.update(torch.tensor(4.0), 1, weight, kind == "sum")
    assert mean.last_average is None
    assert mean.finite()
    assert mean.last_average == {"plain": 1.75, "weighted": 2.5, "sum": 5.0, "empty": None}[kind]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_check_of_the_loss_finds_what_is_not_finite(value: float) -> None:
    mean = RunningMean(torch.device("cpu"))
    mean.update(torch.tensor(value), 3)
    assert not mean.finite()


def test_time_left_ends_with_the_updates_and_waits_for_a_measure() -> None:
    left = TimeLeft(4, lambda epoch: False)
    left.start_epoch(0.0, 0, 0, 10)
    assert left.in_training() is None
    left.train(5.0, 5)
    assert left.in_training() == 35.0
    assert left.in_training(batches_left=3) == 3.0
    assert left.in_training(batches_left=1000) == 35.0
    left.train(10.0, 10)
    left.start_epoch(12.0, 1, 0, 10)  # saving took 2 s
    left.train(17.0, 5)
    assert left.in_training() == 25.0 + 3 * 2.0


def test_time_left_of_an_epoch_that_resumes_counts_its_own_batches() -> None:
    left = TimeLeft(1, lambda epoch: True)
    left.start_epoch(100.0, 0, 8, 10)
    left.train(102.0, 9)
    assert left.in_training() == 2.0


def test_time_left_in_an_evaluation_counts_from_the_last_batch_and_is_never_below_0() -> None:
    left = TimeLeft(2, lambda epoch: True)
    left.start_epoch(0.0, 0, 0, 10)
    left.train(10.0, 10)
    left.start_evaluation(12.0)  # something took 2 s before it
    assert left.in_evaluation(14.0, 0.5) == 10.0 + 4.0
    left.start_epoch(18.0, 1, 0, 10)
    left.train(28.0, 10)
    left.start_evaluation(30.0)
    assert left.in_evaluation(31.0, 0.1) == 5.0  # as the first one, 8 s
    assert left.in_evaluation(50.0, 0.5) == 0.0


def test_time_left_of_an_evaluation_alone_follows_its_share() -> None:
    left = TimeLeft(0, lambda epoch: False)
    left.start_evaluation(10.0)
    assert left.in_evaluation(10.0, 0.0) is None
    assert left.in_evaluation(13.0, 0.25) == 9.0

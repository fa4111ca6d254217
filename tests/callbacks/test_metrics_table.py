"""The metrics of each epoch in a terminal: a table that fits its width."""

from typing import Any

import pytest
import torch
from terminals import Terminal, open_terminal, resize
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel import LoopTrainer, TimmMixupTrainer
from timm_accel.callbacks import Callback, PrintMetricsCallback, SaveBestCallback
from timm_accel.callbacks.output.table import Cell, Table
from timm_accel.mixins import ModelEmaMixin

SCORES = {"accuracy": [0.5, 0.25, 0.75], "ema_model_accuracy": [0.25, 0.5, 0.5], "eval_loss_epoch": [1.0, 2.0, 3.0]}


class Scripted(ModelEmaMixin):
    """Records these values, beside its losses."""

    def eval_epoch_end(self) -> None:
        super().eval_epoch_end()
        for name, values in SCORES.items():
            if name != "eval_loss_epoch":
                self.run_history.update_metric(name, values[self.epoch])


def table(terminal: Terminal) -> list[list[str]]:
    """The words of each line that is no message."""
    lines = [line.split() for line in terminal.screen()]
    return [words for words in lines if words and ("/" in words[0] or words[0] == "epoch")]


def run(trainer: Any, terminal: Terminal, **options: Any) -> list[list[str]]:
    fit(trainer, eval_dataset=tiny_data(6), **options)
    return table(terminal)


def test_a_header_comes_once_and_a_row_for_each_epoch(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 120)
    trainer = make_trainer(
        Scripted, callbacks=[PrintMetricsCallback, SaveBestCallback], run_dir=tmp_path, ema_decay=0.5
    )
    header, *rows = run(trainer, terminal, num_epochs=3)
    assert header[:9] == ["epoch", "train_loss", "eval_loss", "ema", "accuracy", "ema", "lr", "time", "img/s"]
    assert [row[0] for row in rows] == ["1/3", "2/3", "3/3"]
    assert [row[4:6] for row in rows] == [["0.5000*", "0.2500*"], ["0.2500", "0.5000*"], ["0.7500*", "0.5000"]]
    losses = trainer.run_history.get_metric_values("train_loss_epoch")
    assert [row[1] for row in rows] == [f"{loss:.4f}" for loss in losses]
    assert [row[6] for row in rows] == ["0.1"] * 3
    assert len({len(line) for line in terminal.screen() if line}) == 1


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (80, "epoch train_loss eval_loss ema accuracy ema lr time img/s"),
        (60, "epoch train_loss eval_loss accuracy ema time"),
        (40, "epoch train_loss accuracy ema"),
        (20, "epoch train_loss"),
        (5, "epoch"),
    ],
)
def test_a_narrow_terminal_keeps_what_matters_most(columns: int, header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, columns)
    options = {"num_class": 3, "ema_decay": 0.5, "loss_func": torch.nn.CrossEntropyLoss(), "train_accuracy": False}
    found = run(make_trainer(TimmMixupTrainer, callbacks=[PrintMetricsCallback], **options), terminal, num_epochs=2)
    assert found[0] == header.split()
    assert len(found) == 3
    assert max(map(len, terminal.screen())) <= columns


def test_a_new_metric_or_another_width_brings_the_header_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)

    class Late(LoopTrainer):
        def training_run_epoch_end(self) -> None:
            super().training_run_epoch_end()
            if self.epoch in (1, 3):
                self.run_history.update_metric("late", 0.5)
            if self.epoch == 2:
                resize(monkeypatch, 40)

    found = run(make_trainer(Late, callbacks=[PrintMetricsCallback]), terminal, num_epochs=4)
    assert [words[0] for words in found] == ["epoch", "1/4", "epoch", "2/4", "epoch", "3/4", "4/4"]
    assert "late" in found[2]


def test_an_epoch_without_an_evaluation_has_the_columns_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)
    trainer = make_trainer(TimmMixupTrainer, num_class=3, loss_func=torch.nn.CrossEntropyLoss(), ema_decay=0.5,
                           callbacks=[PrintMetricsCallback], evaluate_every_n_epochs=2)  # fmt: skip
    found = run(trainer, terminal, num_epochs=4)
    assert [words[0] for words in found] == ["epoch", "1/4", "2/4", "3/4", "4/4"]
    assert len(found[2]) == len(found[0]) + 1  # the time has a unit
    assert len(found[1]) == len(found[2]) - 4  # without the losses and accuracies of the evaluation


def test_metrics_that_are_no_number_and_long_names_stay_in_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(LoopTrainer):
        def eval_epoch_end(self) -> None:
            super().eval_epoch_end()
            self.run_history.update_metric("pairs", {"cat": torch.tensor(0.5), "dog": [1, "x\ny"]})
            self.run_history.update_metric("a_name_that_is_much_longer_than_any_column_should_be", 12345678.9)
            self.run_history.update_metric("several", torch.zeros(30))

    for columns in (200, 80, 40):
        terminal = open_terminal(monkeypatch, columns)
        run(make_trainer(Odd, callbacks=[PrintMetricsCallback]), terminal)
        assert max(map(len, terminal.screen())) <= columns
        assert ("{cat: 0.5000, dog: [1.0…" in terminal.getvalue()) == (columns == 200)
        assert ("a_name_that_is_much_lon…" in terminal.getvalue()) == (columns >= 80)


def test_a_number_stays_longer_than_other_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(LoopTrainer):
        def eval_epoch_end(self) -> None:
            super().eval_epoch_end()
            self.run_history.update_metric("all", {"a": 1})
            self.run_history.update_metric("zebras", 3.0)

    shown = set()
    for columns in (44, 52, 60, 68, 76, 100):
        terminal = open_terminal(monkeypatch, columns)
        header = run(make_trainer(Odd, callbacks=[PrintMetricsCallback]), terminal)[0]
        shown.add(("all" in header, "zebras" in header))
    assert shown == {(False, False), (False, True), (True, True)}


def test_a_line_of_a_log_tells_the_images_that_were_read_and_numbers_are_below_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Gaps(torch.utils.data.Dataset):
        unreadable = (2, 4)

        def __len__(self) -> int:
            return 6

        def __getitem__(self, number: int) -> Any:
            return tiny_data(6)[number]

    fit(make_trainer(callbacks=[PrintMetricsCallback]), eval_dataset=Gaps(), num_epochs=10)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line[:11] for line in lines] == [f"epoch {number:>2}/10" for number in range(1, 11)]
    assert all("  on 4 of 6 images  " in line for line in lines)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1234.5678", "1234.57"),
        ("1234.5678*", "  1235*"),
        ("12345678.9000", "1.2e+07"),
        ("12345678.9000*", " 1e+07*"),
        ("-1.5e+100*", "-1.5e+…"),
        ("nan", "    nan"),
        ("a long text", "a long…"),
    ],
)
def test_a_value_that_is_wider_than_its_column_is_shortened_and_never_another_number(text: str, shown: str) -> None:
    table = Table()
    assert list(table.lines([Cell("loss", "0.5000*", 0)], 80)) == ["   loss", "0.5000*"]
    assert list(table.lines([Cell("loss", text, 0)], 80)) == [shown]


def test_the_ema_column_never_stands_alone() -> None:
    ema = Cell("ema", "0.5", 1, name="ema_a", beside="a")
    cells = [Cell("epoch", "1/9", 0), Cell("a" * 20, "0.5", 1, name="a"), ema]
    assert list(Table().lines(cells, 20)) == ["epoch", "  1/9"]


def test_an_evaluation_alone_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)
    trainer = make_trainer(callbacks=[PrintMetricsCallback], optimizer=None)
    trainer.evaluate(tiny_data(6), per_device_batch_size=4, dataloader_kwargs={"num_workers": 0})
    header, row = [line.split() for line in terminal.screen() if line]
    assert header[:2] == ["epoch", "evaluation_loss"]
    assert row[0] == "evaluation"


class Interrupting(Callback):
    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.request_stop("Enough.")


def test_a_run_that_starts_again_has_a_header_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 80)
    trainer = make_trainer(callbacks=[PrintMetricsCallback, Interrupting])
    run(trainer, terminal)
    assert [words[0] for words in run(trainer, terminal)] == ["epoch", "1/2"] * 2

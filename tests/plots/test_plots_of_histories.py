"""Learning curves show what history.csv holds, of any number of runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from refusal import refused
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel.callbacks import CsvHistoryCallback, SaveStateCallback
from timm_accel.plots import plot_history, save_figure

pytest.importorskip("matplotlib")
HEAD = "epoch,lr,train_loss_epoch,eval_loss_epoch,accuracy,ema_model_eval_loss_epoch,ema_model_accuracy,train_accuracy"
ROWS = ["1,0.1,3.0,2.5,0.2,2.6,0.1,0.3", "2,0.05,2.0,,,,,0.4", "3,0.01,1.0,1.5,0.6,1.4,0.7,0.5"]


def run(folder: Path, *rows: str, head: str = HEAD, end: str = "\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("\n".join([head, *rows]) + end)
    return folder


def panels(figure: Any) -> dict[str, list[tuple[str, list[float], list[float]]]]:
    return {
        axes.get_title(): [(each.get_linestyle(), [*each.get_xdata()], [*each.get_ydata()]) for each in axes.lines]
        for axes in figure.axes
        if axes.get_title()
    }


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_model_ema_and_training_share_a_panel_and_epochs_without_evaluation_are_skipped(tmp_path: Path) -> None:
    figure = plot_history(run(tmp_path / "one", *ROWS))
    assert panels(figure) == {
        "loss": [(":", [1, 2, 3], [3, 2, 1]), ("-", [1, 3], [2.5, 1.5]), ("--", [1, 3], [2.6, 1.4])],
        "accuracy": [(":", [1, 2, 3], [0.3, 0.4, 0.5]), ("-", [1, 3], [0.2, 0.6]), ("--", [1, 3], [0.1, 0.7])],
        "learning rate": [("-", [1, 2, 3], [0.1, 0.05, 0.01])],
    }
    assert legend(figure) == ["training", "model", "EMA"]
    colors = {line.get_color() for line in figure.axes[0].lines}
    assert len(colors) == 3


def test_runs_of_other_lengths_and_metrics_are_compared(tmp_path: Path) -> None:
    first = run(tmp_path / "a" / "train", *ROWS)
    second = run(
        tmp_path / "b" / "train", "1,0.2,0.9,[1; 2],50.0", head="epoch,lr,f1_macro,per_class,images_per_second"
    )
    figure = plot_history([first, second / "history.csv"])
    assert {title: len(lines) for title, lines in panels(figure).items()} == {
        "loss": 3,
        "accuracy": 3,
        "f1_macro": 1,
        "learning rate": 2,
    }
    assert legend(figure)[:3] == ["training", "model", "EMA"]
    assert len(set(legend(figure)[3:])) == 2  # both folders have the same name
    named = plot_history({"old": first, "a $new$ one": second})
    assert legend(named)[3:] == ["old", "a $new$ one"]
    save_figure(named, tmp_path / "named.png")


def test_one_epoch_is_a_point(tmp_path: Path) -> None:
    figure = plot_history(run(tmp_path / "one", ROWS[0]))
    assert {line.get_marker() for axes in figure.axes for line in axes.lines} == {"o"}
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]


def test_a_line_that_a_run_writes_now_is_left_out(tmp_path: Path) -> None:
    figure = plot_history(run(tmp_path / "one", ROWS[0], "2,0.05,2", end=""))
    assert panels(figure)["learning rate"] == [("-", [1], [0.1])]


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    for epochs, resume in ((1, None), (3, "auto")):
        trainer = make_trainer(callbacks=[CsvHistoryCallback, SaveStateCallback()], run_dir=tmp_path / "run")
        fit(trainer, eval_dataset=tiny_data(8), num_epochs=epochs, resume_from=resume)
    ((_, epochs_drawn, losses), _) = panels(plot_history(tmp_path / "run"))["loss"]
    assert epochs_drawn == [1, 2, 3]
    assert losses == [*trainer.run_history.get_metric_values("train_loss_epoch")]


@pytest.mark.parametrize("rows", [[], ["x,0.1,3,2,1,1,1,1"]])
def test_what_is_no_history_is_refused(rows: list[str], tmp_path: Path) -> None:
    with refused(FileNotFoundError, "Expected runs to be a run folder, but", "nowhere"):
        plot_history(tmp_path / "nowhere")
    with refused(FileNotFoundError, "Expected runs to be a run whose first epoch is complete"):
        plot_history([tmp_path])
    with refused(ValueError, "to hold a row for each complete epoch of a run, but got"):
        plot_history(run(tmp_path / "empty", *rows))
    (tmp_path / "history.csv").write_bytes(b"\xff\xfe\x00")
    with refused(ValueError, "to be the history of a run, but got another file"):
        plot_history(tmp_path)
    nothing: list[Mapping[str, str] | list[str]] = [{}, []]
    for runs in nothing:
        with refused(ValueError, "Expected runs to hold at least one run folder, but got none."):
            plot_history(runs)

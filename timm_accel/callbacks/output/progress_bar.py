"""Show how far a run is: a bar in a terminal, a line in a notebook, and now and then a line in a log."""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.std import Bar  # type: ignore[attr-defined]

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.output.time_left import TimeLeft
from timm_accel.terminal import clipped, in_notebook, is_terminal, rate, width_of

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

Line = Callable[[int, str | None], str]


class ProgressBarCallback(Callback):
    """Show the progress of each training epoch and each evaluation, on rank 0.

    In a terminal (stderr) one bar is redrawn, in a notebook one line. It shows the loss, the learning rate, the images
    of all ranks in a second, and the time that is left of the run, and leaves out some where the terminal is narrow.
    The loss is the mean of the epoch so far; on a GPU it is that of the sync point before the last one, so that no step
    waits for it.
    Without a terminal there is no bar: a line is printed a minute after the start of the epoch or the line before.
    """

    def __init__(self) -> None:
        self._display: _Terminal | _Notebook | _Log | None = None

    def _start(self, trainer: "LoopTrainer", num_epochs: int) -> None:
        every, has_evaluation = trainer.evaluate_every_n_epochs, trainer.eval_dataset is not None
        self._num_epochs, self._title, self._done, self._total = num_epochs, "", 0, 0
        self._left = TimeLeft(
            num_epochs, lambda epoch: has_evaluation and ((epoch + 1) % every == 0 or epoch + 1 == num_epochs)
        )
        self._display, self._shown = None, perf_counter()
        if trainer.current_run().accelerator.is_main_process:
            self._display = _display(trainer.print)
            trainer.current_run().at_exit.callback(self._display.leave)

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._start(trainer, trainer.run_config.num_epochs)

    def on_evaluation_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._start(trainer, 0)

    def on_train_epoch_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        run, now = trainer.current_run(), perf_counter()
        self._shown = now  # the line of the epoch before
        self._left.start_epoch(now, run.epoch or 0, run.batches_done, len(run.train_dataloader))
        self._open(trainer, "train", run.train_dataloader, run.batches_done)

    def on_train_step_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._done += 1
        self._left.train(perf_counter(), self._done)
        self._show(trainer)

    def on_train_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._left.train(perf_counter(), self._done)  # when the device has finished
        self._close()

    def on_eval_epoch_start(self, trainer: "LoopTrainer", is_intermediate: bool = False, **kwargs: Any) -> None:
        if not is_intermediate:  # the bar of the training epoch is still open
            self._left.start_evaluation(perf_counter())
            self._open(trainer, "evaluate", trainer.current_run().eval_dataloader)

    def on_eval_step_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().batch_index is None:
            self._done += 1
            self._show(trainer)

    def on_eval_epoch_end(self, trainer: "LoopTrainer", is_intermediate: bool = False, **kwargs: Any) -> None:
        if not is_intermediate:
            self._close()

    def on_stop_training_error(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._close()

    def _open(self, trainer: "LoopTrainer", title: str, loader: Any, done: int = 0) -> None:
        self._title, self._done, self._total = title, done, len(loader)
        if self._display is not None:
            self._display.open(lambda width, charset: self._line(trainer, width, charset))

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()

    def _show(self, trainer: "LoopTrainer") -> None:
        now = perf_counter()
        if self._display is not None and now - self._shown >= self._display.interval:
            self._shown = now
            self._display.show()

    def _line(self, trainer: "LoopTrainer", width: int, charset: str | None) -> str:
        run, mean = trainer.current_run(), trainer.current_run().running_loss
        training = self._title == "train"
        speed = run.speed if training else run.evaluation_speed
        share = min(self._done / self._total, 1.0) if self._total else 1.0
        on_cpu = trainer.device.type == "cpu"
        loss = mean.last_average if not on_cpu else mean.average if mean.count else None
        if training:
            steps = trainer.run_config.gradient_accumulation_steps
            to_do = None if run.max_updates is None else (run.max_updates - run.num_updates) * steps
            left = self._left.in_training(to_do)
        else:
            left = self._left.in_evaluation(perf_counter(), share)
        return progress_line(
            width,
            charset,
            self._title,
            "" if run.epoch is None else f"{run.epoch + 1}/{self._num_epochs}",
            share,
            {
                "loss": "" if loss is None else f"loss {loss:.4g}",
                "lr": f"lr {run.learning_rate:.3g}" if training else "",
                "speed": f"{rate(speed.images_per_second)} images/s" if speed.images else "",
                "left": "" if left is None else f"{tqdm.format_interval(left)} left",
            },
        )


def progress_line(width: int, charset: str | None, title: str, epoch: str, share: float, parts: dict[str, str]) -> str:
    """Return a line of progress: all of it, or what matters most where it is longer than `width`.

    Args:
        width: The largest number of characters.
        charset: The characters of a bar that fills the rest of the width; None for no bar.
        title: What runs.
        epoch: The number of the epoch.
        share: How much of the epoch is done, from 0 to 1.
        parts: ``loss``, ``lr``, ``speed`` and ``left`` as text; those that are empty are left out.
    """
    for name, kept in (
        (f"{title} {epoch}", ("loss", "lr", "speed", "left")),
        (f"{title} {epoch}", ("loss", "speed", "left")),
        (f"{title} {epoch}", ("loss", "left")),
        (epoch or title, ("loss", "left")),
        (epoch or title, ("left",)),
    ):
        start = f"{name.strip()} {int(100 * share):2d}%"
        rest = "".join(f"  {parts[part]}" for part in kept if parts[part])
        if (free := width - len(start) - len(rest)) >= 0:
            bar = "" if charset is None or free < 6 else f" {Bar(share, min(free - 1, 20), charset)}"
            return start + bar + rest
    return clipped(start + rest, width)


def _display(print_fn: Callable[[str], None]) -> "_Terminal | _Notebook | _Log":
    if is_terminal(sys.stderr):
        return _Terminal()
    return _Notebook() if in_notebook() else _Log(print_fn)


class _Terminal:
    """One line of stderr, which is redrawn."""

    interval = 0.1

    def __init__(self) -> None:
        self._bar: _Bar | None = None

    def open(self, line: Line) -> None:
        self._bar = _Bar(line)

    def show(self) -> None:
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    leave = close


class _Bar(tqdm):
    """tqdm's bar, which other bars and `trainer.print` know of, with a line that follows the terminal's width."""

    monitor_interval = 0  # no thread: each line is drawn after a batch

    def __init__(self, line: Line) -> None:
        self._line = line
        super().__init__(leave=False, file=sys.stderr)

    def __str__(self) -> str:
        return self._line(width_of(self.fp) - 1, Bar.ASCII if self.ascii is True else Bar.UTF)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return what overwrites the last line, and leaves the cursor at its start: what others print replaces it.

        Upstream's blanks reach into the next line of a narrowed terminal, and upstream's cursor stays at the end.
        """
        last = 0

        def print_status(text: str) -> None:
            nonlocal last
            blanks = min(last, width_of(file) - 1) - len(text)
            file.write("\r" + text + " " * blanks + "\r")
            file.flush()
            last = len(text)

        return print_status


class _Notebook:
    """One output of the cell, which is redrawn and empty at the end."""

    interval = 0.5

    def __init__(self) -> None:
        self._output: Any = None
        self._line: Line = lambda width, charset: ""

    def open(self, line: Line) -> None:
        self._line = line
        self.show()

    def show(self) -> None:
        self._write(self._line(80, Bar.UTF))

    def _write(self, text: str) -> None:
        from IPython.display import display

        if self._output is None:
            self._output = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._output.update({"text/plain": text}, raw=True)

    def close(self) -> None:
        """Leave the line until the next epoch."""

    def leave(self) -> None:
        if self._output is not None:
            self._write("")


class _Log:
    """Now and then a line."""

    interval = 60.0

    def __init__(self, print_fn: Callable[[str], None]) -> None:
        self._print = print_fn

    def open(self, line: Line) -> None:
        self._line = line

    def show(self) -> None:
        self._print(self._line(200, None))

    def close(self) -> None:
        """Leave nothing to be cleared."""

    leave = close

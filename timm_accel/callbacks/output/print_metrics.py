"""Print the metrics of each epoch: rows of a table in a terminal or a notebook, whole lines in a log."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.output.table import Cell, Table
from timm_accel.callbacks.recorded_metrics import FreshMetrics, readable
from timm_accel.callbacks.save_best import SaveBestCallback
from timm_accel.callbacks.unreadable_images import images_read
from timm_accel.states.weights import EMA_MODEL, metric_prefix
from timm_accel.terminal import duration, in_notebook, is_terminal, rate, width_of

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_EMA = metric_prefix(EMA_MODEL)
_LOSSES = ("eval_loss_epoch", "evaluation_loss")


class PrintMetricsCallback(Callback):
    """Print each epoch on rank 0: the metrics recorded in it, the learning rate, its duration and its speed.

    In a terminal or a notebook this is a row of a table that fits its width. The header is printed again where a metric
    is new or the terminal has another width. Where a column does not fit, it is left out: the epoch, the training loss
    and the metric that `SaveBestCallback` watches stay longest, with the value of the EMA weights beside it; then
    the evaluation loss, the time, the learning rate, and the others. In a log each line has all values with their names
    and can be read alone. A ``*`` marks a value that is the best so far by `SaveBestCallback`. The time is that of the
    epoch with its evaluation; images per second, the share of time spent waiting for data and the peak of memory are
    those of the training, see `timm_accel.states.speed`.
    """

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._metrics, self._started = FreshMetrics(trainer.run_history), time.perf_counter()
        self._table = Table()
        self._best = next((each for each in trainer.callback_handler if isinstance(each, SaveBestCallback)), None)

    on_evaluation_run_start = on_training_run_start

    def state_dict(self) -> dict[str, Any]:
        """Return which metrics were printed."""
        return self._metrics.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Print only metrics that are recorded later."""
        self._metrics.load_state_dict(state_dict)

    def on_train_epoch_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        epochs = trainer.run_config.num_epochs
        number = f"{trainer.run_history.current_epoch:>{len(str(epochs))}}/{epochs}"
        self._print(trainer, f"epoch {number}", trainer.current_run().epoch_learning_rate)

    def on_evaluation_run_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._print(trainer, "evaluation")

    def _print(self, trainer: "LoopTrainer", title: str, learning_rate: float | None = None) -> None:
        fresh = self._metrics.take(trainer.run_history)
        run, read = trainer.current_run(), images_read(trainer.eval_dataset)
        seconds = time.perf_counter() - self._started
        speed = run.speed if learning_rate is not None else run.evaluation_speed
        if not (is_terminal(sys.stdout) or in_notebook()):
            columns = [title, *([] if learning_rate is None else [f"lr {learning_rate:.3g}"]), *self._named(fresh)]
            columns += [f"on {read}"] if read else []
            measured = [f"{seconds:.1f} s"]
            if speed.images:
                measured.append(f"{rate(speed.images_per_second)} images/s")
                measured.append(f"{speed.data_wait:.0%} waiting for data")
                measured.append(f"{speed.peak_memory_gb:.2f} GB")
            trainer.print("  ".join([*columns, ", ".join(measured)]))
            return
        cells = [Cell("epoch", title.removeprefix("epoch ").strip(), rank=0)]
        cells += self._cells(fresh, self._expected(trainer, learning_rate is not None))
        cells.append(Cell("images", read.removesuffix(" images"), rank=3))
        if learning_rate is not None:
            cells.append(Cell("lr", f"{learning_rate:.3g}", rank=6, width=8))
        cells.append(Cell("time", duration(seconds), rank=5, width=6))
        if speed.images:
            cells.append(Cell("img/s", rate(speed.images_per_second), rank=7))
            cells.append(Cell("waiting", f"{speed.data_wait:.0%}", rank=10))
            cells.append(Cell("GB", f"{speed.peak_memory_gb:.2f}", rank=11, width=5))
        for line in self._table.lines(cells, width_of(sys.stdout)):
            trainer.print(line)

    def _named(self, fresh: Mapping[str, Any]) -> list[str]:
        """Return each metric with its name, and beside it that of the EMA weights."""
        columns = []
        for name in sorted(fresh, key=_training_first):
            if _has_model(name, fresh):
                continue
            ema = f" (ema {self._marked(_EMA + name, fresh)})" if _EMA + name in fresh else ""
            columns.append(f"{name.removesuffix('_epoch')} {self._marked(name, fresh)}{ema}")
        return columns

    def _expected(self, trainer: "LoopTrainer", in_training: bool) -> list[str]:
        """Return the metrics of the next evaluation, so that an epoch without one has the same columns."""
        if not in_training or trainer.eval_dataset is None:
            return []
        return [prefix + name for prefix in trainer.metric_prefixes() for name in trainer.evaluation_metrics()]

    def _cells(self, fresh: Mapping[str, Any], expected: list[str]) -> list[Cell]:
        names = dict.fromkeys([*fresh, *expected])
        main = self._main_metric(names)
        cells = []
        for name in sorted(names, key=_training_first):
            if _has_model(name, names):
                continue
            rank = 1 if name == "train_loss_epoch" else 2 if name == main else 4 if name in _LOSSES else 9
            for each, title in ((name, name.removesuffix("_epoch")), (_EMA + name, "ema")):
                if each in names:
                    number = each not in fresh or isinstance(fresh[each], float | int)
                    cells.append(
                        Cell(
                            title,
                            self._marked(each, fresh) + ("" if self._is_best(each, fresh) or name != main else " "),
                            rank=12 if not number else 8 if each != name and name in _LOSSES else rank,
                            width=7 if name == main else 6,
                            name=each,
                            beside=name if each != name else None,
                        )
                    )
        return cells

    def _main_metric(self, names: Mapping[str, Any]) -> str | None:
        if self._best is not None:
            return self._best.watch_metric
        usual = ("accuracy", "map", *(name for name in sorted(names) if not name.startswith(("train", _EMA))), *_LOSSES)
        return next((name for name in usual if name in names and name not in _LOSSES), None)

    def _marked(self, name: str, fresh: Mapping[str, Any]) -> str:
        return readable(fresh[name]) + "*" * self._is_best(name, fresh) if name in fresh else ""

    def _is_best(self, name: str, fresh: Mapping[str, Any]) -> bool:
        return self._best is not None and name in fresh and self._best.would_save(name, fresh[name])


def _has_model(name: str, names: Mapping[str, Any]) -> bool:
    """Whether it is a metric of the EMA weights that stands beside that of the model."""
    return name.startswith(_EMA) and name.removeprefix(_EMA) in names


def _training_first(name: str) -> tuple[bool, bool, str]:
    return not name.startswith("train"), "loss" not in name, name

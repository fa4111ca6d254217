"""Write the history to a CSV file, one row per epoch."""

import csv
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.atomic import atomic_write
from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.recorded_metrics import FreshMetrics, plain_value
from timm_accel.states.growing import Growing
from timm_accel.states.run_dir import check_run_dir

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class CsvHistoryCallback(Callback):
    """Write ``history.csv`` into the run folder: epoch (from 1), learning rate, and every metric of each epoch.

    The field of a metric is empty in an epoch that did not record it. Tensors and arrays are written as numbers or
    lists.

    Args:
        path: The file; None for ``history.csv`` in the trainer's ``run_dir``.

    Raises:
        ValueError: There is neither a path nor a ``run_dir``.
        OSError: At the start, if the file exists or its folder cannot be written to.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._file: Path | None = None
        self._columns: list[str] = []
        self._rows = Growing()  # of text, as in the file

    def on_init_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._file = trainer.run_dir / "history.csv" if self.path is None and trainer.run_dir else self.path
        if self._file is None:
            raise ValueError(
                "Expected CsvHistoryCallback to have a file, but got neither path nor the trainer's run_dir. "
                "Pass run_dir to the trainer."
            )

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        assert self._file is not None
        check_run_dir(
            self._file.parent,
            [] if trainer.belongs_to_run(self._file) else [self._file.name],
            argument="the folder of path",
        )
        self._columns, self._rows, self._metrics = [], Growing(), FreshMetrics(trainer.run_history)
        self._writes = trainer.current_run().accelerator.is_main_process

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the file, and which metrics are in it."""
        return {"columns": self._columns, "rows": self._rows, "seen": self._metrics.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the content of the file."""
        self._columns = list(state_dict["columns"])
        text = StringIO(state_dict.get("text", ""), newline="")  # of a state of format 1
        self._rows = Growing([*state_dict.get("rows", ()), *csv.DictReader(text)])
        self._metrics.load_state_dict(state_dict["seen"])
        if self._writes and self._columns:
            self._rewrite()

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        epoch = {"epoch": trainer.run_history.current_epoch, "lr": trainer.current_run().epoch_learning_rate}
        row: dict[str, Any] = epoch | plain_value(self._metrics.take(trainer.run_history))
        self._rows.append({name: "" if value is None else str(value) for name, value in row.items()})
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if not self._writes:
            return
        if new:
            self._rewrite()
        else:
            assert self._file is not None
            with open(self._file, "a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(self._rows[-1])

    def _rewrite(self) -> None:
        assert self._file is not None
        with atomic_write(self._file) as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)

"""Write the history to a CSV file, one row per epoch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.atomic import atomic_write
from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.optional_files import OptionalFile
from timm_accel.callbacks.recorded_metrics import FreshMetrics, plain_value
from timm_accel.states.run_dir import check_run_dir
from timm_accel.text_files import read_csv, write_csv

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class CsvHistoryCallback(Callback):
    """Write ``history.csv`` into the run folder: epoch (from 1), learning rate, and every metric of each epoch.

    The field of a metric is empty in an epoch that did not record it. Tensors and arrays are written as numbers or
    lists. Where the file cannot be written, this is reported, and the run continues; the rows are written later.

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
        self._unwritten: list[dict[str, Any]] = []
        self._optional = OptionalFile()

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
        self._columns, self._unwritten, self._metrics = [], [], FreshMetrics(trainer.run_history)
        self._writes = trainer.current_run().accelerator.is_main_process

    def state_dict(self) -> dict[str, Any]:
        """Return the content of the file, and which metrics are in it."""
        assert self._file is not None
        text = self._file.read_bytes().decode() if self._columns else ""
        return {"text": text, "columns": self._columns, "seen": self._metrics.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the content of the file."""
        self._columns = list(state_dict["columns"])
        self._metrics.load_state_dict(state_dict["seen"])
        assert self._file is not None
        if self._writes and self._columns:
            with atomic_write(self._file) as path:
                path.write_bytes(state_dict["text"].encode())

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        epoch = {"epoch": trainer.run_history.current_epoch, "lr": trainer.current_run().epoch_learning_rate}
        row: dict[str, Any] = epoch | plain_value(self._metrics.take(trainer.run_history))
        if self._writes:
            self._unwritten.append(row)
            with self._optional.writing(trainer.print):
                self._write()

    def _write(self) -> None:
        assert self._file is not None
        rows = [*(read_csv(self._file) if self._columns else []), *self._unwritten]
        columns = list(dict.fromkeys([*self._columns, *(name for row in self._unwritten for name in row)]))
        write_csv(self._file, [columns, *([each.get(name) for name in columns] for each in rows)])
        self._columns, self._unwritten = columns, []

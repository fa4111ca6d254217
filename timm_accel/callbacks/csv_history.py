"""Write the history to a CSV file, one row per epoch."""

import csv
from contextlib import suppress
from io import SEEK_END, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.atomic import open_own
from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.optional_files import OptionalFile
from timm_accel.callbacks.recorded_metrics import FreshMetrics, plain_value
from timm_accel.distributed.consensus import on_main_process
from timm_accel.states.growing import Growing
from timm_accel.states.run_dir import check_kind, check_run_dir
from timm_accel.states.speed import COLUMNS as SPEED
from timm_accel.text_files import cell_of, is_number, read_csv, unescaped, write_csv

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class CsvHistoryCallback(Callback):
    """Write ``history.csv`` into the run folder: epoch (from 1), learning rate, and every metric of each epoch.

    The field of a metric is empty in an epoch that did not record it. Tensors and arrays are written as numbers or
    lists. ``images_per_second``, ``data_wait`` (a share of the time) and ``peak_memory_gb`` are those of the training
    epoch: see `timm_accel.states.speed`. They are in no state: a resumed run finds those of earlier epochs in the file.
    Where the file cannot be written, this is reported, and the run continues; the rows are written later.

    Args:
        path: The file; None for ``history.csv`` in the trainer's ``run_dir``.

    Raises:
        ValueError: There is neither a path nor a ``run_dir``.
        OSError: At the start, if the file exists, is a link, or its folder cannot be written to.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._file: Path | None = None
        self._columns: list[str] = []
        self._rows = Growing()  # of text
        self._speeds: dict[str, dict[str, str]] = {}  # of each epoch
        self._size = 0  # of the file in bytes
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
        file, accelerator = self._file, trainer.current_run().accelerator

        def check() -> None:
            others = [] if trainer.belongs_to_run(file) else [file.name]
            check_run_dir(file.parent, others, argument="the folder of path")
            check_kind(file, "file")

        on_main_process(accelerator, check)
        self._columns, self._rows, self._metrics = [], Growing(), FreshMetrics(trainer.run_history)
        self._speeds = {}
        self._writes = accelerator.is_main_process

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the file, and which metrics are in it."""
        return {"columns": self._columns, "rows": self._rows, "seen": self._metrics.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows of the file."""
        self._columns = list(state_dict["columns"])
        text = csv.DictReader(StringIO(state_dict.get("text", ""), newline=""))  # of a state of format 1
        old = ({name: unescaped(cell) for name, cell in row.items()} for row in text)
        self._rows = Growing([*state_dict.get("rows", ()), *old])
        self._metrics.load_state_dict(state_dict["seen"])

    def on_resumed(self, trainer: "LoopTrainer", state: Path, **kwargs: Any) -> None:
        if self._writes and self._columns:
            self._speeds = self._read_speeds()
            with self._optional.writing(trainer.print):
                self._rewrite()

    def _read_speeds(self) -> dict[str, dict[str, str]]:
        """Return what the file holds of the speed of each epoch; nothing where it cannot be read."""
        assert self._file is not None
        with suppress(OSError, ValueError, KeyError, csv.Error):
            rows = read_csv(self._file)
            return {row["epoch"]: {name: row[name] for name in SPEED if is_number(row.get(name, ""))} for row in rows}
        return {}

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        epoch = {"epoch": trainer.run_history.current_epoch, "lr": trainer.current_run().epoch_learning_rate}
        row: dict[str, Any] = epoch | plain_value(self._metrics.take(trainer.run_history))
        self._rows.append({name: "" if value is None else str(value) for name, value in row.items()})
        speed = {name: str(value) for name, value in trainer.current_run().speed.row().items() if name not in row}
        if speed:  # none where the run resumed after the training of this epoch
            self._speeds[str(epoch["epoch"])] = speed
        new = [name for name in [*row, *SPEED] if name not in self._columns]
        self._columns += new
        if self._writes and (new or not self._append(self._rows[-1])):
            with self._optional.writing(trainer.print):
                self._rewrite()

    def _append(self, row: dict[str, str]) -> bool:
        """Append a row to the file as it was written last; return whether that was possible."""
        assert self._file is not None
        line = StringIO(newline="")
        csv.writer(line).writerow(map(cell_of, self._cells(row)))
        added = line.getvalue().encode()
        try:
            with open(self._file, "r+b", buffering=0, opener=open_own) as file:
                if file.seek(0, SEEK_END) != self._size:
                    return False
                written = file.write(added)
                self._size += written
                return written == len(added)
        except OSError:  # the disk is full, or the file was deleted
            return False

    def _cells(self, row: dict[str, str]) -> list[str]:
        whole = self._speeds.get(row["epoch"], {}) | row
        return [whole.get(name, "") for name in self._columns]

    def _rewrite(self) -> None:
        assert self._file is not None
        rows = map(self._cells, self._rows)
        self._size = -1  # where this write fails, the next one is whole too
        write_csv(self._file, [self._columns, *rows])
        self._size = self._file.stat().st_size

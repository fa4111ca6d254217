"""How long training on an epoch and to the end will take, from the updates between two sync points."""

from time import perf_counter
from typing import TYPE_CHECKING

from timm_accel.data.resources import in_megabytes
from timm_accel.states.speed import peak_memory

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_SECONDS = 3.0  # of training, after the first sync point, that an estimate needs


class Pace:
    """The speed of the first updates of an epoch, by the host's clock at moments when the device has no work left.

    Args:
        num_updates: Optimizer updates before the epoch.
    """

    def __init__(self, num_updates: int) -> None:
        self._marks = [(num_updates, perf_counter())]

    def mark(self, num_updates: int) -> None:
        """Note the time, at a sync point."""
        self._marks.append((num_updates, perf_counter()))

    @property
    def is_known(self) -> bool:
        """Whether some seconds of training lie between two sync points; the first updates are slower."""
        return len(self._marks) > 2 and self._marks[-1][1] - self._marks[1][1] >= _SECONDS

    def seconds_per_update(self) -> float | None:
        """Return the duration of an update; None where there was none."""
        first = self._marks[1] if self.is_known else self._marks[0]
        updates = self._marks[-1][0] - first[0]
        return (self._marks[-1][1] - first[1]) / updates if updates > 0 else None

    def estimate(self, trainer: "LoopTrainer") -> str | None:
        """Return the estimate in words."""
        if (seconds := self.seconds_per_update()) is None:
            return None
        run, config = trainer.current_run(), trainer.run_config
        updates = config.max_num_train_steps - run.num_updates
        left = f", {duration(updates * seconds)} to the end" if updates > 0 else ""
        rest = "" if trainer.eval_dataset is None else " without evaluations"
        memory = in_megabytes(peak_memory(run.accelerator.device))
        return f"{duration(run.updates_per_epoch * seconds)} an epoch{left}{rest}; peak of memory {memory}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``"45 s"``, ``"2 min 5 s"``, ``"3 h 20 min"``, ``"2 d 1 h"``.

    >>> duration(0.4), duration(125), duration(12_000)
    ('0.4 s', '2 min 5 s', '3 h 20 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)]
    first = next(number for number, (_, size) in enumerate(units) if seconds >= size)
    parts: list[str] = []
    for name, size in units[first : first + 2]:
        count, seconds = divmod(seconds, size)
        parts += [f"{count} {name}"] * bool(count or not parts)
    return " ".join(parts)

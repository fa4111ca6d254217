"""How long a run still takes, from what it has taken so far."""

from collections.abc import Callable
from math import ceil


class TimeLeft:
    """Estimates the time until the end of the run, its evaluations and the saving after each epoch included.

    A batch takes what those of the last and the current epoch took. What comes after the batches of an epoch takes what
    it took last; before it was measured, nothing is counted for it.

    Args:
        num_epochs: The epochs of the run.
        evaluates: Called with an epoch, from 0; tells whether it ends with an evaluation.
    """

    def __init__(self, num_epochs: int, evaluates: Callable[[int], bool]) -> None:
        self._num_epochs, self._evaluates = num_epochs, evaluates
        self._rest: dict[bool, float] = {}  # the seconds after the batches, with an evaluation and without
        self._previous = self._current = (0.0, 0)  # seconds and batches of training
        self._epoch, self._total, self._done = -1, 0, 0
        self._trained: float | None = None

    def start_epoch(self, now: float, epoch: int, done: int, total: int) -> None:
        """Note that a training epoch starts, or resumes after `done` of its `total` batches."""
        if self._trained is not None:
            self._rest[self._evaluates(self._epoch)] = now - self._trained
        self._previous, self._current = self._current, (0.0, 0)
        self._epoch, self._total, self._done, self._first, self._began = epoch, total, done, done, now

    def train(self, now: float, done: int) -> None:
        """Note that `done` batches of the current epoch are trained on."""
        self._current = now - self._began, done - self._first
        self._trained, self._done = now, done

    def start_evaluation(self, now: float) -> None:
        """Note that an evaluation starts, also where no training came before it."""
        if self._trained is None:
            self._trained = now

    def in_training(self, batches_left: int | None = None) -> float | None:
        """Return the seconds that are left while a training epoch runs; None before the first batch.

        Args:
            batches_left: Where the run ends before its last epoch; None where it does not.
        """
        return self._training(self._done, self._epoch, batches_left)

    def in_evaluation(self, now: float, share: float) -> float | None:
        """Return the seconds that are left when a share of the current evaluation is done."""
        following = self._training(0, self._epoch + 1, None) if self._num_epochs else 0.0
        spent = 0.0 if self._trained is None else now - self._trained
        if True in self._rest:
            rest = max(self._rest[True] - spent, 0.0)
        elif share > 0:
            rest = spent * (1 - share) / share
        else:
            return None
        return None if following is None else following + rest

    def _training(self, done: int, epoch: int, batches_left: int | None) -> float | None:
        batches = (self._num_epochs - epoch) * self._total - done
        if batches_left is not None:
            batches = min(batches, batches_left)
        seconds, measured = (sum(each) for each in zip(self._previous, self._current, strict=True))
        if measured == 0 or self._total == 0:
            return None
        epochs = ceil((done + batches) / self._total)
        rests = (self._rest.get(self._evaluates(each), 0.0) for each in range(epoch, epoch + epochs))
        return batches * seconds / measured + sum(rests)

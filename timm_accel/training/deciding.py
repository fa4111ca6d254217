"""Deciding: at agreed moments the processes save, stop, or leave to go on later, all together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from timm_accel.states.consensus import Agreement, Stop, Wishes
from timm_accel.training.checkpoints import CheckpointingTrainer
from timm_accel.training.signals import stop_signals
from timm_accel.upstream import StopTrainingError


class DecidingTrainer(CheckpointingTrainer):
    """The part of `LoopTrainer` that acts on what the processes wish; see there."""

    _agreed = Wishes()
    _saved = False

    @contextmanager
    def _agreeing(self) -> Iterator[None]:
        """Let processes ask to stop and to save; at the end, all leave as was agreed."""
        self._agreement, self._agreed = Agreement(self._accelerator.num_processes), Wishes()
        try:
            yield
        finally:
            self._epoch = self._batch_index = self._agreement = None
        if self._agreed.stop == Stop.FAILED:
            raise RuntimeError(self._agreed.reason)
        if self._agreed.stop == Stop.INTERRUPTED:
            self._leave()

    def _agree(self) -> None:
        if self._agreement is None:
            return
        self._agreed = wishes = self._agreement.reach()
        may_save = self._progress is not None and self.run_dir is not None and wishes.stop != Stop.FAILED
        stops = wishes.stop == Stop.INTERRUPTED or (wishes.stop == Stop.FINISHED and self.keep_states is not None)
        self._saved = may_save and (wishes.save or stops)
        if self._saved:
            self._saved = self._save_state(wishes.milestone, wishes.reason if wishes.stop == Stop.FINISHED else None)
        if wishes.stop is not None:
            raise StopTrainingError(wishes.reason)

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        """Where states are kept, SIGTERM and SIGINT end the run when the processes agree, with a state."""
        if self.keep_states is None:
            yield
            return
        with stop_signals(lambda name: self.request_stop(f"Received {name}.", interrupted=True)):
            yield

    def _leave(self) -> None:
        if not self._saved:
            raise RuntimeError(
                f"Expected a state to be written before leaving ({self._agreed.reason}), but it could not be. "
                "Make room or mend the run folder."
            )
        self.print(
            f"Interrupted; the state is {str(self._last_state)!r}. Start the same again with resume_from='auto' "
            "(--resume auto on the command line) to go on."
        )
        self._accelerator.end_training()  # gloo aborts at exit otherwise
        raise SystemExit(os.EX_TEMPFAIL)

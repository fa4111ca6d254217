"""Train for some seconds to estimate what a run will take, and leave nothing behind."""

from typing import Any

from timm_accel.callbacks import (
    Callback,
    CsvHistoryCallback,
    EarlyStoppingCallback,
    MoveModulesToDeviceCallback,
    PrintSetupCallback,
    SaveBestCallback,
    StopOnNonFiniteLossCallback,
    UnreadableImagesCallback,
)

_KEPT = (MoveModulesToDeviceCallback, StopOnNonFiniteLossCallback)
_ASKED = (UnreadableImagesCallback, EarlyStoppingCallback, SaveBestCallback, CsvHistoryCallback)


class _AsksOnly(Callback):
    """Let other callbacks refuse the start of a run, and nothing else: they write nothing."""

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks = callbacks

    def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
        for callback in self.callbacks:
            callback.on_training_run_start(trainer, **kwargs)


class _StopAfterEstimate(PrintSetupCallback):
    """End the run once the estimate is known, and not later than the first training epoch.

    Args:
        keep_states: The states that the run would keep.
        callbacks: The callbacks that it would have.
    """

    def __init__(self, keep_states: int | None, callbacks: Any) -> None:
        super().__init__()
        self.keep_states, self.callbacks = keep_states, callbacks

    def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
        own = trainer.callback_handler
        trainer.keep_states, trainer.callback_handler = self.keep_states, self.callbacks  # the screen is of the run
        super().on_training_run_start(trainer, **kwargs)
        trainer.keep_states, trainer.callback_handler = None, own

    def _estimate(self, trainer: Any, pace: Any) -> None:
        super()._estimate(trainer, pace)
        trainer.request_stop("Dry run: nothing was saved.")


def train_for_estimate(trainer: Any, **train_arguments: Any) -> None:
    """Train until the estimate of `PrintSetupCallback` is known, without a state or any other file.

    Args:
        trainer: The trainer; it is used up.
        **train_arguments: The arguments of its ``train``.
    """
    kept = [each for each in trainer.callback_handler if isinstance(each, _KEPT)]
    asked = _AsksOnly([each for each in trainer.callback_handler if isinstance(each, _ASKED)])
    stop = _StopAfterEstimate(trainer.keep_states, trainer.callback_handler)
    trainer.callback_handler = type(trainer.callback_handler)([*kept, asked, stop])
    trainer.keep_states = None
    trainer.train(**train_arguments)

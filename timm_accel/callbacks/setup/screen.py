"""Print, before training, what is trained on what, and soon afterwards how long it will take."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.setup.about_data import about_data
from timm_accel.callbacks.setup.about_run import ABOUT_RUN
from timm_accel.callbacks.setup.estimate import Pace
from timm_accel.terminal import padded, screen_width, shortened, wrapped

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_LABEL = 10  # columns
_WIDEST = 80
_ASCII = str.maketrans("▁▂▃▄▅▆▇█×…·", "__.-=+*#x~-")
Facts = Iterator[tuple[str, str]]


class PrintSetupCallback(Callback):
    """Print one screen before training: data, model, device, batches, schedule, EMA weights, loss, results.

    At a sync point in the first seconds of training follows one more line: an estimate of the duration of training on
    an epoch and to the end, and the peak of memory. Evaluations are not in it; once the first one has run, the time
    left of `ProgressBarCallback` counts them. The estimate waits for no device more than the sync points do.

    What the data or the trainer do not tell is left out. Only rank 0 prints, in at most 80 columns, and in ASCII where
    the terminal has no other characters.
    """

    def __init__(self) -> None:
        self._pace: Pace | None = None
        self.estimated = False

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._pace, self.estimated = None, False
        if trainer.current_run().accelerator.is_main_process:
            for label, text in _facts(trainer):
                trainer.print(_line(label, text))

    def on_train_epoch_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if not self.estimated:
            self._pace = Pace(trainer.current_run().num_updates)

    def on_update_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        num_updates = trainer.current_run().num_updates
        if not self.estimated and self._pace is not None and num_updates % trainer.sync_every_n_updates == 0:
            self._pace.mark(num_updates)
            if self._pace.is_known:
                self._estimate(trainer, self._pace)

    def on_train_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if not self.estimated and self._pace is not None:
            self._pace.mark(trainer.current_run().num_updates)
            self._estimate(trainer, self._pace)

    def _estimate(self, trainer: "LoopTrainer", pace: Pace) -> None:
        self.estimated = True
        if trainer.current_run().accelerator.is_main_process and (text := pace.estimate(trainer)):
            trainer.print(_line("estimate", text))


def _facts(trainer: "LoopTrainer") -> Facts:
    for about in (about_data, *ABOUT_RUN):
        try:
            yield from about(trainer)
        except Exception:  # data and trainers of users lack what this line tells
            continue


def _line(label: str, text: str) -> str:
    """Return a label and its text, in several lines where they do not fit into the screen."""
    width = min(_WIDEST, screen_width())
    label_width = min(_LABEL, width // 4)
    indent = " " * label_width
    words = " ".join(shortened(word, width - label_width) for word in text.split())
    lines = wrapped(words, width - label_width)
    shown = "\n".join([padded(label, label_width) + lines[0], *(indent + line for line in lines[1:])])
    return shown if _is_printed(shown) else shown.translate(_ASCII)


def _is_printed(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True

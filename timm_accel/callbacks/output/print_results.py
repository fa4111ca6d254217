"""Print what a run has led to, and the commands that come next."""

import os
import shlex
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.save_best import SaveBestCallback
from timm_accel.distributed.consensus import Stop
from timm_accel.models import read_config

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_RECIPE = "recipe.yaml"


class PrintResultsCallback(Callback):
    """Print at the end of a run the best value of the model and of the EMA weights, and where these weights lie.

    The values are those of `SaveBestCallback`. The commands follow that predict with the weights, evaluate and export
    them, unless timm cannot rebuild the model. A run that was interrupted prints the command that resumes it instead,
    if its folder holds a ``recipe.yaml`` and it has one process. Pass it last, so that its lines are the last ones.

    Args:
        data: The path of the data, for the command that evaluates; the command has ``DATA`` for anything else.
    """

    def __init__(self, data: Any = None) -> None:
        self.data = data

    def on_training_run_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        run = trainer.current_run()
        if not run.accelerator.is_main_process or run.agreed.stop is Stop.FAILED:
            return
        if run.agreed.stop is Stop.INTERRUPTED:
            self._print_resume(trainer)
            return
        saver = next((each for each in trainer.callback_handler if isinstance(each, SaveBestCallback)), None)
        if saver is None or not saver.best:
            return
        for name, best in sorted(saver.best.items(), reverse=True):
            trainer.print(
                f"Best {best['metric']} {best['value']:.4f} in epoch {best['epoch']}: weights in {saver.folder(name)}"
            )
        if all(read_config(saver.folder(name)).get("architecture") is not None for name in saver.best):
            root = saver.folder("model").parent
            trainer.print("Next:")
            for words in (
                ("predict", root, _image_of(trainer.eval_dataset)),
                ("evaluate", root, self.data if isinstance(self.data, str | PathLike) else "DATA"),
                ("export", root, "model.onnx"),
            ):
                trainer.print(f"  timm-accel {' '.join(map(_word, words))}")

    def _print_resume(self, trainer: "LoopTrainer") -> None:
        recipe = None if trainer.run_dir is None else trainer.run_dir / _RECIPE
        if recipe is not None and recipe.is_file() and trainer.current_run().accelerator.num_processes == 1:
            trainer.print(f"To resume: timm-accel train --config {_word(recipe)} --resume auto")


def _word(word: Any) -> str:
    """Return a word of a command line, quoted where a shell needs it; a path in the home folder begins with ``~``."""
    path, home = Path(word), Path.home()
    if os.name == "posix" and path.is_absolute() and path != home and path.is_relative_to(home):
        return f"~/{shlex.quote(str(path.relative_to(home)))}"
    return shlex.quote(str(word))


def _image_of(dataset: Any) -> str:
    """Return the path of an image of a dataset, or ``IMAGE`` where its first one is no file."""
    try:
        path = str(dataset.filename(0, absolute=True))
    except Exception:  # a dataset of a user may have nothing like it
        return "IMAGE"
    return path if Path(path).is_file() else "IMAGE"

"""A run that was built from a recipe: train it, or try it for some seconds."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from timm_accel.atomic import atomic_write
from timm_accel.callbacks import Callback
from timm_accel.callbacks.optional_files import OptionalFile
from timm_accel.recipes.dry_run import train_for_estimate
from timm_accel.recipes.recipe import Recipe
from timm_accel.states.folder import STATES
from timm_accel.states.run_dir import RECIPE, UnstartedRun
from timm_accel.trainers import TimmMixupTrainer


@dataclass
class Run:
    """A run that is ready to start.

    Args:
        recipe: The recipe that it was built from, with the warm-up and the batch size of its run.
        trainer: The trainer.
        train_arguments: The arguments of its ``train``.
        unstarted: Removes what a refused start leaves in the run folder.
    """

    recipe: Recipe
    trainer: TimmMixupTrainer
    train_arguments: dict[str, Any]
    unstarted: UnstartedRun
    _is_used: bool = field(default=False, init=False)

    def train(self) -> TimmMixupTrainer:
        """Write the resolved recipe into the run folder, train, and return the trainer.

        A run that resumes writes its own: it may be longer, or have another precision.
        An error before the first update leaves the run folder as it was found.
        """
        if self._is_used:
            raise RuntimeError(
                "Expected a run that has not been trained, but got one after dry_run(). Call build_run() again."
            )
        path = Path(self.recipe.run_dir) / RECIPE
        begun = path.exists() and (path.parent / STATES).is_dir()  # otherwise a failed start left it
        if begun:
            self.trainer.callback_handler.add_callback(_WriteRecipeCallback(self.recipe))
        elif self.trainer.accelerator.is_main_process:
            _write_recipe(self.recipe, self.trainer)
        try:
            self.trainer.train(**self.train_arguments)
        except Exception:
            if self.trainer.num_updates == 0:
                self._undo()
            raise
        return self.trainer

    def dry_run(self) -> None:
        """Print the screen before training, train for some seconds, print the estimate, and leave nothing behind.

        What training refuses is refused. The model has then been trained: build another run to train.
        """
        self._is_used = True
        try:
            train_for_estimate(self.trainer, **self.train_arguments)
        finally:
            self._undo()

    def _undo(self) -> None:
        if self.trainer.accelerator.is_main_process:
            self.unstarted.undo()


class _WriteRecipeCallback(Callback):
    """Write the recipe of a run that resumes, once nothing refuses it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_resumed(self, trainer: Any, state: Path, **kwargs: Any) -> None:
        if trainer.accelerator.is_main_process:
            _write_recipe(self.recipe, trainer)


def _write_recipe(recipe: Recipe, trainer: TimmMixupTrainer) -> None:
    with OptionalFile().writing(trainer.print), atomic_write(Path(recipe.run_dir) / RECIPE) as unfinished:
        unfinished.write_text(yaml.safe_dump(plain_options(asdict(recipe)), sort_keys=False))


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with lists for tuples, since YAML and JSON have no tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

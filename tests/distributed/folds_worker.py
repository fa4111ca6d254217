"""Cross-validate on this rank: one whole run, and one that is cut in its second fold and resumed."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm_accel import Recipe
from timm_accel.callbacks import SaveStateCallback
from timm_accel.distributed.processes import process_state
from timm_accel.recipes import cross_validate


class CutError(Exception):
    """Cuts a run."""


def main() -> None:
    folder, data = Path(sys.argv[1]), sys.argv[2]
    state = process_state()
    folder = folder / str(state.num_processes)
    recipe = Recipe(data_dir=data, run_dir=str(folder / "whole"), folds=2, model="test_resnet", image_size=32,
                    num_epochs=2, batch_size=2, num_workers=0, warmup_epochs=0, opt="adamw", lr=1e-3)  # fmt: skip
    cross_validate(recipe)
    steps = []

    def cut(callback: Any, trainer: Any, **kwargs: Any) -> None:
        steps.append(1)
        if trainer.run_dir.name == "fold_2" and trainer.current_run().num_updates == 1:
            raise CutError

    original = getattr(SaveStateCallback, "on_train_step_start", None)
    SaveStateCallback.on_train_step_start = cut  # type: ignore[method-assign]
    changed = replace(recipe, run_dir=str(folder / "cut"), save_every_n_updates=1, resume="auto")
    try:
        cross_validate(changed)
        raise AssertionError
    except CutError:
        pass
    if original is None:
        del SaveStateCallback.on_train_step_start
    else:
        SaveStateCallback.on_train_step_start = original  # type: ignore[method-assign]
    cross_validate(changed)
    state.destroy_process_group()

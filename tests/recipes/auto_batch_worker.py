"""What each rank does for `test_dry_run.py`: it finds a batch size, where rank 1 has less memory, and dry-runs."""

import os
import sys
from pathlib import Path

from timm_accel import Recipe, batch_size_search
from timm_accel.recipes import build_run


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    original = batch_size_search._SearchTrainer._on_cpu
    batch_size_search._SearchTrainer._on_cpu = lambda self, batch: min(original(self, batch), 8 if rank == 0 else 4)
    recipe = Recipe(
        model="test_resnet",
        image_size=32,
        batch_size="auto",
        num_epochs=1,
        num_workers=0,
        data_dir=str(folder / "data"),
        run_dir=str(folder / "run"),
    )
    run = build_run(recipe)
    (folder / f"{rank}.txt").write_text(str(run.recipe.batch_size))
    run.dry_run()
    run.trainer.accelerator.end_training()

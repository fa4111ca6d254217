"""Train with a recipe."""

from functools import partial
from pathlib import Path

from timm_accel.distributed.processes import process_state
from timm_accel.recipes import Recipe, build_run, cross_validate
from timm_accel.recipes.cross_validation import OUT_OF_FOLD
from timm_accel.report import WriteReportCallback
from timm_accel.report import report as write_report
from timm_accel.report.writing import NAME, written_or_why_not
from timm_accel.terminal import print_fitted


def train(recipe: Recipe, *, dry_run: bool = False, report: bool = True) -> None:
    """Train an image classifier; without options on handwritten digits, a demo of under a minute on two cores.

    With folds, and no fold, it trains a run for each fold and prints the mean and the deviation of their metrics.

    Args:
        recipe: The options of the run.
        dry_run: Whether to stop after the screen and the estimate of some seconds of training, and save nothing.
        report: Whether to write report.html into the run folder, or into that of all folds, at the end.
    """
    if recipe.folds is not None and recipe.fold is None and not dry_run:
        _cross_validate(recipe, report)
        return
    run = build_run(recipe, [WriteReportCallback] if report else [])
    if dry_run:
        run.dry_run()
    else:
        run.train()
    run.trainer.accelerator.end_training()


def _cross_validate(recipe: Recipe, report: bool) -> None:
    result = cross_validate(recipe)
    state = process_state()
    if state.is_main_process:
        print_fitted(f"\n{result}\n\nPredictions of all images: {recipe.run_dir}/{OUT_OF_FOLD}")
        if report:
            print_fitted(written_or_why_not(Path(recipe.run_dir) / NAME, partial(write_report, recipe.run_dir)))
    state.destroy_process_group()

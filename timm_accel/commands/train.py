"""Train with a recipe."""

from timm_accel.data.image_files import counts_on_screen
from timm_accel.messages import one_line
from timm_accel.recipes import Recipe, Run, build_run, cross_validate
from timm_accel.recipes.cross_validation import OUT_OF_FOLD
from timm_accel.report import report as write_report
from timm_accel.states.processes import process_state
from timm_accel.terminal import print_fitted


def train(recipe: Recipe, *, dry_run: bool = False, report: bool = True) -> None:
    """Train an image classifier; without options on handwritten digits, a demo of under a minute on two cores.

    With folds, and no fold, it trains a run for each fold and prints the mean and the deviation of their metrics.

    Args:
        recipe: The options of the run.
        dry_run: Whether to stop after the screen and the estimate of some seconds of training, and save nothing.
        report: Whether to write report.html into the run folder at the end.
    """
    if recipe.folds is not None and recipe.fold is None and not dry_run:
        _cross_validate(recipe)
        return
    run = build_run(recipe)
    if dry_run:
        run.dry_run()
    else:
        run.train()
        if report and run.trainer.accelerator.is_main_process:
            _report(run)
    run.trainer.accelerator.end_training()


def _cross_validate(recipe: Recipe) -> None:
    result = cross_validate(recipe)
    state = process_state()
    if state.is_main_process:
        print_fitted(f"\n{result}\n\nPredictions of all images: {recipe.run_dir}/{OUT_OF_FOLD}")
    state.destroy_process_group()


def _report(run: Run) -> None:
    """Write the page; what hinders it is reported, and the trained run stands."""
    images = run.train_arguments["per_device_batch_size"]
    try:
        with counts_on_screen():  # at the start of the run
            path = write_report(run.recipe.run_dir, batch_size=images)
    except (OSError, ValueError) as error:
        print_fitted(f"The report could not be written: {one_line(error, None)}")
    else:
        print_fitted(f"Report: {path}")

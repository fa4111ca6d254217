"""Train with a recipe."""

from timm_accel.recipes import Recipe, build_run


def train(recipe: Recipe, *, dry_run: bool = False) -> None:
    """Train an image classifier; without options on handwritten digits, a demo of under a minute on two cores.

    Args:
        recipe: The options of the run.
        dry_run: Whether to stop after the screen and the estimate of some seconds of training, and save nothing.
    """
    run = build_run(recipe)
    if dry_run:
        run.dry_run()
    else:
        run.train()
    run.trainer.accelerator.end_training()

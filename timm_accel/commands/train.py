"""Train with a recipe."""

from timm_accel.recipes import Recipe, build_run


def train(recipe: Recipe) -> None:
    """Train an image classifier; without options on handwritten digits, a demo of under a minute on two cores.

    Args:
        recipe: The options of the run.
    """
    build_run(recipe).train().accelerator.end_training()

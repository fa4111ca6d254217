"""The command ``find-lr``: run an LR range test on what a recipe describes."""

from dataclasses import replace
from tempfile import TemporaryDirectory

from timm_accel.commands.output.columns import print_facts, print_text
from timm_accel.commands.output.files import check_figure
from timm_accel.lr_finder import LRRangeTest
from timm_accel.lr_finder import find_lr as find_lr_of
from timm_accel.recipes import Recipe, build_run
from timm_accel.terminal import screen_width, sparkline

_TRAIN_OPTIONS = ("per_device_batch_size", "gradient_accumulation_steps", "train_dataloader_kwargs")


def find_lr(
    recipe: Recipe,
    *,
    first_lr: float = 1e-6,
    last_lr: float = 1.0,
    num_updates: int = 100,
    stop_at: float = 4.0,
    out: str | None = None,
) -> None:
    """Train for some updates with rising learning rates, and suggest one from the losses.

    Nothing is written into the run folder, and nothing is kept of this training. The suggestions need a look at the
    figure.

    Args:
        recipe: The options of the run, as for train.
        first_lr: The learning rate of the first update.
        last_lr: The learning rate of the last update.
        num_updates: The number of updates.
        stop_at: The test ends once the smoothed loss is this many times its smallest value.
        out: Also draw the losses into this file, such as a .png; needs the extra plots.
    """
    check_figure(out)
    with TemporaryDirectory() as folder:
        run = build_run(replace(recipe, run_dir=folder, resume=None))
        found = find_lr_of(
            run.trainer,
            run.train_arguments["train_dataset"],
            min_lr=first_lr,
            max_lr=last_lr,
            num_updates=num_updates,
            stop_at=stop_at,
            **{name: run.train_arguments[name] for name in _TRAIN_OPTIONS},
        )
    if run.trainer.accelerator.is_main_process:
        _print(found)
        if out is not None:
            _draw(found, out)


def _print(found: LRRangeTest) -> None:
    low, high = found.smoothed.min(), found.smoothed.max()
    print_facts(
        {
            "updates": len(found.losses),
            "smoothed loss": f"{found.smoothed[0]:.4f} at the start, {low:.4f} to {high:.4f}",
            "lr": f"{found.learning_rates[0]:.1e} to {found.learning_rates[len(found.losses) - 1]:.1e}",
        }
    )
    print(sparkline(found.smoothed.tolist(), screen_width()))
    print_facts(
        {
            "steepest": _lr(found.steepest),
            "minimum / 10": _lr(found.minimum_tenth),
            "valley": _lr(found.valley),
        }
    )
    if found.steepest is None:
        print_text("The loss never falls: look for a fault in the data or the options, or lower first_lr.")


def _lr(value: float | None) -> str:
    return "none, since the loss never falls" if value is None else f"{value:.2g}"


def _draw(found: LRRangeTest, out: str) -> None:
    from timm_accel.plots import plot_lr_finder, save_figure

    save_figure(plot_lr_finder(found), out)

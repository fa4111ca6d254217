"""The command ``preview-lr``: the learning rates of a recipe, without training."""

from dataclasses import replace
from math import ceil, floor
from typing import Any

from timm_accel.commands.output.columns import Row, print_facts, print_rows
from timm_accel.commands.output.files import check_figure
from timm_accel.data import write_digits
from timm_accel.data.sources import is_stream
from timm_accel.messages import counted
from timm_accel.recipes import Recipe
from timm_accel.recipes.data import source_of
from timm_accel.schedules import SimulatedSchedule, simulate_schedule
from timm_accel.terminal import screen_width, sparkline
from timm_accel.text_files import write_csv

_MAX_ROWS = 12


def preview_lr(
    recipe: Recipe,
    *,
    updates_per_epoch: int | None = None,
    num_processes: int = 1,
    out: str | None = None,
) -> None:
    """Show the learning rates of a run without training.

    With layer decay it is the learning rate of the head, which is the highest.

    Args:
        recipe: The options of the run, as for train.
        updates_per_epoch: Optimizer updates in one epoch; None counts the images of the recipe's data.
        num_processes: The number of processes of the run.
        out: Also write this file: .csv has the learning rate of each update, other files, such as .png, have the figure
            and need the extra plots.
    """
    check_figure(out, ".csv")
    if updates_per_epoch is None:
        updates_per_epoch = _updates_per_epoch(recipe, max(1, num_processes))  # the simulation refuses 0
    described: Any = recipe  # mypy: its fields are frozen, those of `DescribesSchedule` are not
    found = simulate_schedule(described, updates_per_epoch=updates_per_epoch, num_processes=num_processes)
    _print(found, recipe, updates_per_epoch)
    if out is not None:
        _write(found, out)


def _updates_per_epoch(recipe: Recipe, num_processes: int) -> int:
    """Return the updates of one epoch of the recipe's data, as the loop counts them."""
    data = write_digits() if recipe.data_dir is None else recipe.data_dir
    if is_stream(data):
        raise ValueError(
            f"Expected updates_per_epoch beside {data!r}, since the images of a stream are not counted, but got None. "
            "Pass the number of images over the global batch size."
        )
    if recipe.batch_size == "auto":
        raise ValueError(
            "Expected updates_per_epoch beside batch_size='auto', since no batch is tried, but got None. Pass it, or a "
            "batch_size."
        )
    source = replace(source_of(recipe, data), split_file=None)
    batches = len(source.open("train")) / (recipe.batch_size * num_processes)
    drops = batches >= 1 if recipe.drop_last is None else recipe.drop_last
    return max(1, ceil((floor(batches) if drops else ceil(batches)) / recipe.gradient_accumulation_steps))


def _print(found: SimulatedSchedule, recipe: Recipe, updates_per_epoch: int) -> None:
    lrs = found.learning_rates.max(axis=1)
    print_facts(
        {
            "schedule": recipe.sched,
            "updates": f"{len(lrs):,}: {counted(recipe.num_epochs, 'epoch')} of {updates_per_epoch}",
            "lr": f"{lrs[0]:.3g} at first, {lrs.max():.3g} from epoch {int(found.epochs[lrs.argmax()]) + 1}, "
            f"{lrs[-1]:.3g} at last",
        }
    )
    print(sparkline(lrs.tolist(), screen_width()))
    step = ceil(recipe.num_epochs / _MAX_ROWS)
    rows = [
        Row(str(epoch + 1), [f"{lrs[epoch * updates_per_epoch]:.3g}"])
        for epoch in [*range(0, recipe.num_epochs - 1, step), recipe.num_epochs - 1]
    ]
    print_rows([Row("epoch", ["lr at its start"]), *rows], right=True)


def _write(found: SimulatedSchedule, out: str) -> None:
    if out.lower().endswith(".csv"):
        groups = range(found.learning_rates.shape[1])
        titles = ["update", "epoch", *("lr" if number == 0 else f"lr_{number}" for number in groups)]
        columns = zip(found.updates.tolist(), found.epochs.tolist(), found.learning_rates.tolist(), strict=True)
        write_csv(out, [titles, *([update, epoch, *lrs] for update, epoch, lrs in columns)])
        return
    from timm_accel.plots import plot_schedule, save_figure

    save_figure(plot_schedule(found), out)

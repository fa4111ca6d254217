"""Cross-validate a recipe: a run for each fold, the metrics of all of them, and the predictions of every image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import torch

from timm_accel.callbacks.recorded_metrics import one_number
from timm_accel.data.readers.manifest_reader import import_pyarrow
from timm_accel.distributed.processes import process_state
from timm_accel.distributed.shares import share_of_process
from timm_accel.messages import counted
from timm_accel.predict import Scores, evaluation_of, score_images
from timm_accel.recipes.building import build_run
from timm_accel.recipes.recipe import Recipe
from timm_accel.text_files import write_json

OUT_OF_FOLD = "out_of_fold.parquet"
RESULT = "cross_validation.json"
_SCORES = "scores.parquet"


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation; ``print`` shows mean and standard deviation of each metric.

    Args:
        best: The metrics of each fold with its best weights, as of `evaluate_classifier`. The epoch was chosen by the
            images of the fold, so that these are a little too good.
        last: The metrics of each fold after the last epoch, which no image of the fold has chosen.
        scores: The probabilities of every image from the fold that was not trained on it, by the best weights.
    """

    best: Sequence[Mapping[str, float]]
    last: Sequence[Mapping[str, float]]
    scores: Scores

    def __str__(self) -> str:
        lines = [f"{len(self.best)} folds, {len(self.scores):,} images"]
        for title, folds in {"best weights": self.best, "last epoch": self.last}.items():
            width = max([24, *(len(name) + 2 for name in folds[0])])
            lines += ["", f"{title:<{width}}    mean  deviation"]
            lines += [f"{name:<{width}}{mean:8.4f}{spread:11.4f}" for name, (mean, spread) in _spreads(folds).items()]
        return "\n".join(lines)

    def to_json(self, path: str | Path) -> None:
        """Write the metrics of each fold, and their means and deviations, to a file, atomically.

        Raises:
            OSError: Nothing can be written there.
        """
        about = {name: list(map(dict, folds)) for name, folds in (("best", self.best), ("last", self.last))}
        spreads = {
            f"{name}_mean_and_deviation": {metric: list(pair) for metric, pair in _spreads(folds).items()}
            for name, folds in about.items()
        }
        write_json(path, about | spreads)


def _spreads(folds: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return mean and sample standard deviation of each metric that all folds have."""
    values = {name: [fold[name] for fold in folds] for name in folds[0] if all(name in fold for fold in folds)}
    return {name: (fmean(each), stdev(each)) for name, each in values.items()}


def cross_validate(recipe: Recipe, folds: int | None = None) -> CrossValidation:
    """Train a run for each fold, score the images of the fold with its best weights, and summarize the metrics.

    The images are divided by class, and by `group` where the recipe has one; equal files are in one fold. A source with
    splits is divided within ``train``, and its other splits are not used. Each run is in its own folder, ``fold_1``,
    ``fold_2``, …, of the recipe's ``run_dir``, and resumes exactly with ``resume="auto"``; finished folds are not
    trained again. ``out_of_fold.parquet`` holds the scores of all images, ``cross_validation.json`` the metrics.

    Args:
        recipe: The recipe of each run; ``fold`` is None.
        folds: The number of folds; None for that of the recipe.

    Raises:
        FileExistsError: A folder holds a run, and the recipe does not resume.
        ModuleNotFoundError: The extra ``parquet`` is not installed.
        ValueError: There are more folds than images of a class, the groups cannot be divided into so many, or `fold`
            is given.
    """
    count = recipe.folds if folds is None else folds
    if count is None or recipe.fold is not None:
        raise ValueError(
            f"Expected folds without fold, since all of them are trained, but got folds={count!r} and "
            f"fold={recipe.fold!r}. Pass folds=5, or train a single fold with build_run(recipe).train()."
        )
    import_pyarrow("the predictions of a cross-validation")
    folder = Path(recipe.run_dir)
    results = []
    for fold in range(1, count + 1):
        part = replace(recipe, folds=count, fold=fold, run_dir=str(folder / f"fold_{fold}"))
        results.append(_train_fold(part))
    best, last, scores = zip(*results, strict=True)
    result = CrossValidation(best, last, _joined(scores))
    if process_state().is_main_process:
        result.scores.to_parquet(folder / OUT_OF_FOLD)
        result.to_json(folder / RESULT)
    return result


def _train_fold(recipe: Recipe) -> tuple[dict[str, float], dict[str, float], Scores]:
    """Train one fold, and return its metrics with the best weights and after the last epoch, and its scores."""
    run = build_run(recipe)
    trainer, evaluated = run.trainer, run.train_arguments["eval_dataset"]
    trainer.print(f"Fold {recipe.fold} of {recipe.folds}: {counted(len(evaluated), 'image')} to evaluate on")
    run.train()
    names = [prefix + name for prefix in trainer.metric_prefixes() for name in trainer.evaluation_metrics()]
    history = trainer.run_history
    last = {name: one_number("metric", name, history.get_latest_metric(name)) for name in names}
    path = Path(recipe.run_dir) / _SCORES
    share = share_of_process(True)
    if not share.of_first(path.exists):
        images = run.train_arguments["per_device_batch_size"]
        scored = score_images(recipe.run_dir, evaluated, batch_size=images, device=trainer.device, share=True)
        share.of_first(lambda: scored.to_parquet(path))
    scores = Scores.from_parquet(path)
    return evaluation_of(scores).metrics, last, scores


def _joined(folds: Sequence[Scores]) -> Scores:
    """Return the scores of all folds in the order of their paths; a class is missing if no fold has it."""
    missing = set.intersection(*(set(fold.missing_classes) for fold in folds))
    joined = Scores(
        paths=[path for fold in folds for path in fold.paths],
        targets=torch.cat([fold.targets for fold in folds]),
        probabilities=torch.cat([fold.probabilities for fold in folds]),
        class_names=folds[0].class_names,
        unreadable=[path for fold in folds for path in fold.unreadable],
        missing_classes=[name for name in folds[0].class_names if name in missing],
    )
    return joined.take(sorted(range(len(joined)), key=joined.paths.__getitem__))

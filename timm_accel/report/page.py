"""Collect what the page shows of one run: curves, metrics, mistakes, training images and options."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_accel.messages import one_line
from timm_accel.predict import Classifier, Evaluation, Scores, evaluation_of, load_classifier, score_images
from timm_accel.predict.scored_images import highest_losses, is_listed
from timm_accel.recipes.past_run import data_of_run, read_options, recipe_of_run
from timm_accel.report.charts import Chart, Points, line_chart
from timm_accel.report.examples import augmented_examples
from timm_accel.report.history import History, best_metrics, progress_of, read_history
from timm_accel.report.mistakes import (
    ShownImage,
    calibration_chart,
    confident_errors,
    shown_images,
)

MAX_IMAGES = 24


@dataclass(frozen=True)
class Page:
    """What the page shows of one run; what is missing is None or empty, and `notes` says why."""

    name: str
    history: History
    charts: list[Chart]
    best: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    notes: list[str]
    evaluation: Evaluation | None = None
    calibration: Chart | None = None
    worst: list[ShownImage] | None = None
    errors: list[ShownImage] | None = None
    augmented: list[str] | None = None
    mixed: list[str] | None = None


def page_of(run: Path, data: Any = None, train_set: Any = None, *, batch_size: int, num_workers: int) -> Page:
    """Return the page of a run.

    Args:
        run: The folder of the run.
        data: The labeled images to evaluate on; None for those of the recipe.
        train_set: The training dataset; None for that of the recipe, where `data` is None too.
        batch_size: Images at a time.
        num_workers: Loader processes.
    """
    history, options, notes = read_history(run), read_options(run), []
    if progress := progress_of(run, history, options):
        notes.append(f"The run {progress}")
    best = best_metrics(run)
    shown: dict[str, Any] = {}
    if not best:
        notes.append("The run has no weights yet, so that nothing can be evaluated.")
    elif data is None and not options:
        notes.append("The run has no recipe.yaml, so that its data are not known. Pass them to see the mistakes.")
    else:
        try:
            shown = _mistakes(run, data, train_set, batch_size, num_workers)
        except (OSError, ValueError, TypeError, ModuleNotFoundError, RuntimeError) as error:
            notes.append(f"The images could not be evaluated: {one_line(error, None)}")
    return Page(run.resolve().name, history, _charts(history), best, options, notes, **shown)


def _mistakes(run: Path, data: Any, train_set: Any, batch_size: int, num_workers: int) -> dict[str, Any]:
    classifier, recipe = load_classifier(run), recipe_of_run(run)
    shown: dict[str, Any] = {}
    if data is None and recipe is not None:
        train_set, data = data_of_run(recipe, classifier.data_config)
    if recipe is not None:
        shown["augmented"], shown["mixed"] = augmented_examples(recipe, train_set)
    scores = score_images(classifier, data, batch_size=batch_size, num_workers=num_workers)
    return shown | {
        "evaluation": evaluation_of(scores),
        "calibration": calibration_chart(scores),
        **_shown_mistakes(scores, classifier, data),
    }


def _shown_mistakes(scores: Scores, classifier: Classifier, data: Any) -> dict[str, list[ShownImage]]:
    reader = getattr(data, "reader", None)
    reader = reader if is_listed(reader) else None
    return {
        "worst": shown_images(scores, highest_losses(scores, MAX_IMAGES), reader, classifier.prepare),
        "errors": shown_images(scores, confident_errors(scores, MAX_IMAGES), reader, classifier.prepare),
    }


def _charts(history: History) -> list[Chart]:
    losses = {"training": history.points.get("train_loss_epoch", [])} | {
        name.replace("eval_loss_epoch", "evaluation"): points
        for name, points in history.pairs("eval_loss_epoch").items()
    }
    charts = [_model_and_ema("Loss", losses, {"training": 0, "evaluation": 1})]
    for name in filter(None, [history.main_metric(), *history.other_metrics()]):
        if name != "eval_loss_epoch":
            charts.append(_model_and_ema(name, history.pairs(name), {name: 0}))
    charts.append(line_chart("Learning rate", {"lr": history.points.get("lr", [])}))
    return [chart for chart in charts if chart is not None]


def _model_and_ema(title: str, lines: Mapping[str, Points], colors: dict[str, int]) -> Chart | None:
    """Return a chart in which the EMA model has the color of its model, dashed."""
    dashed = [name for name in lines if name.endswith(" (EMA)")]
    return line_chart(title, lines, dashed=dashed, colors={name: colors[name.removesuffix(" (EMA)")] for name in lines})

"""A figure of the confusion matrix."""

from math import ceil
from typing import TYPE_CHECKING, Any, cast

from timm_accel.plots.figures import _new_figure
from timm_accel.plots.text import _drawable, _font_families

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from timm_accel.predict import Evaluation

CELL_INCHES = 0.42
MAX_ANNOTATED_CLASSES = 20  # with more classes the counts are too small to read
MAX_NAMED_CLASSES = 40  # with more classes every second, third, … one is named


def plot_confusion(evaluation: "Evaluation", *, figure: "Figure | SubFigure | None" = None) -> "Figure":
    """Show the confusion matrix: colors are shares of a row (the true class), and numbers are counts.

    A name that no installed font can draw is shown as the number of its class, and a log line tells the name.

    Args:
        evaluation: The result of ``timm_accel.predict.evaluate_classifier``.
        figure: The figure to draw into; None for a new figure.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        ValueError: The evaluation has no matrix: it is multi-label, or has more than 1,000 classes.
    """
    if evaluation.confusion_matrix is None:
        raise ValueError(
            f"Expected evaluation to have a confusion matrix, but got that of a multi-label model or of too many "
            f"classes, {len(evaluation.classes)}. Look at evaluation.classes and evaluation.most_confused."
        )
    matrix, names = evaluation.confusion_matrix, _drawable(evaluation.class_names)
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    if figure is None:
        side = 1.8 + CELL_INCHES * min(len(names), MAX_NAMED_CLASSES)
        figure = _new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = ceil(len(names) / MAX_NAMED_CLASSES)
    ticks, shown = range(0, len(names), step), names[::step]
    text: Any = {"fontsize": 8, "parse_math": False, "fontfamily": _font_families(shown)}
    axes.set_xticks(ticks, shown, rotation=90, **text)
    axes.set_yticks(ticks, shown, **text)
    axes.set(xlabel="prediction", ylabel="true class")
    if len(names) <= MAX_ANNOTATED_CLASSES:
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class")
    return cast("Figure", figure.figure)

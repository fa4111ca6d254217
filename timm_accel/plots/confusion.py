"""A figure of the confusion matrix."""

from typing import TYPE_CHECKING, cast

from timm_accel.plots.figures import _new_figure
from timm_accel.plots.images import _shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from timm_accel.predict import Evaluation

CELL_INCHES = 0.42
MAX_ANNOTATED_CLASSES = 20  # with more classes the counts are too small to read


def plot_confusion(evaluation: "Evaluation", *, figure: "Figure | SubFigure | None" = None) -> "Figure":
    """Show the confusion matrix: colors are shares of a row (the true class), and numbers are counts.

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
    matrix, names = evaluation.confusion_matrix, [_shorten(name) for name in evaluation.class_names]
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    if figure is None:
        side = 1.8 + CELL_INCHES * min(len(names), 40)
        figure = _new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set(xlabel="prediction", ylabel="true class")
    if len(names) <= MAX_ANNOTATED_CLASSES:
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class")
    return cast("Figure", figure.figure)

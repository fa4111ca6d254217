"""A figure of what a model gets most wrong: the images with the highest losses."""

from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor

from timm_accel.data.transforms.prepare_image import PrepareImage
from timm_accel.plots.figures import _complete, _draw_cells
from timm_accel.plots.images import _check_count
from timm_accel.plots.predictions import UNREADABLE, _with_files, _with_share
from timm_accel.plots.text import _drawable, _shorten
from timm_accel.predict import Scores
from timm_accel.predict.labeled import open_reader
from timm_accel.predict.scored_images import highest_losses, images_of, is_listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

SIZE = 224  # pixels of the longer side
WRONG = "#D55E00"  # the vermilion of Okabe and Ito, 2008


def plot_top_losses(
    scores: Scores,
    data: Any,
    count: int = 16,
    *,
    eval_split: str | None = "val",
    columns: int | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Show the images with the highest losses, the highest first: prediction, label, loss and file.

    Images are whole and upright. The title of a wrong prediction is vermilion.

    Args:
        scores: The result of `score_images`.
        data: The same data, as given to `score_images`.
        count: The number of images, at most.
        eval_split: The same split, as given to `score_images`.
        columns: The number of columns; None for rows of equal length with up to 8 images.
        figure: The figure to draw into; None for a new figure.

    Raises:
        FileNotFoundError: The data do not exist.
        ModuleNotFoundError: The extra ``plots`` is not installed.
        TypeError: `scores` are no `Scores`.
        ValueError: `count` is below 1, there are no scores, or the data are a stream or lack such an image.
    """
    _check_count(count)
    if not isinstance(scores, Scores):
        raise TypeError(
            f"Expected scores to be Scores, but got {type(scores).__name__}. Make them by "
            "timm_accel.predict.score_images."
        )
    if not len(scores):
        raise ValueError("Expected scores to have images, but got none. Score data that hold some.")
    chosen = scores.take(highest_losses(scores, count))
    images = list(images_of(chosen.paths, _reader_of(chosen, data, eval_split), PrepareImage()))
    names = _drawable(scores.class_names)
    titles = [_title(chosen, index, names, image is None) for index, image in enumerate(images)]
    cells = _draw_cells([_square(image) for image in images], _with_files(titles, chosen.paths), columns, figure)
    for index, axes in enumerate(cells):
        if not _is_right(chosen, index):
            axes.title.set_color(WRONG)
    return _complete(cells)


def _reader_of(scores: Scores, data: Any, split: str | None) -> Any:
    reader = open_reader(data, split)
    if not is_listed(reader):
        raise ValueError(
            "Expected data to list its images, since those of the scores are opened by path, but got a stream. Pass "
            "files, a tar or a manifest."
        )
    missing = set(scores.paths) - {reader.filename(number, absolute=True) for number in range(len(reader))}
    if missing:
        raise ValueError(
            f"Expected data to hold the images of scores, but got data without {min(missing)!r}. Pass the data and the "
            "split that were scored."
        )
    return reader


def _square(image: Image.Image | None) -> Any:
    """Return an image from 0 to 1 with white margins; an image that cannot be read is white."""
    image = image or Image.new("RGB", (1, 1), "white")
    return pil_to_tensor(ImageOps.pad(image, (SIZE, SIZE), color="white")) / 255


def _is_right(scores: Scores, index: int) -> bool:
    """Return whether the most probable class is a label."""
    return scores.class_names[int(scores.probabilities[index].argmax())] in scores.labels_of(index)


def _title(scores: Scores, index: int, names: list[str], unreadable: bool) -> str:
    best = int(scores.probabilities[index].argmax())
    labels = scores.targets[index].nonzero().flatten() if scores.is_multi_label else scores.targets[index : index + 1]
    label = ", ".join(names[number] for number in labels.tolist()) or "none"
    lines = [
        _with_share(names[best], float(scores.probabilities[index, best])),
        _shorten(f"is {label}", f", loss {float(scores.losses[index]):.2f}"),
    ]
    return "\n".join(lines + [UNREADABLE] * unreadable)

"""The example image of a package, from the data of the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from timm_accel.data.transforms.prepare_image import read_image
from timm_accel.predict import Classifier
from timm_accel.recipes.past_run import data_of_run, recipe_of_run

MAX_SIDE = 512
_TRIED = 10


def example_image(run: Path, classifier: Classifier) -> Image.Image | None:
    """Return the first evaluation image of a run that can be read; None if the data are not at hand.

    It is upright, in 8 bits, without EXIF, and at most 512 pixels wide and high.

    Args:
        run: The folder of the run.
        classifier: The model, for its preprocessing.
    """
    try:
        recipe = recipe_of_run(run)
        at_hand = None if recipe is None else replace(recipe, download=False)
        data = None if at_hand is None else data_of_run(at_hand, classifier.data_config)[1]
    except (OSError, ValueError, TypeError, ModuleNotFoundError):
        return None
    reader = getattr(data, "reader", None)
    if not hasattr(reader, "filename") or hasattr(reader, "share"):  # a stream has no first image
        return None
    return _first_readable(reader, classifier)


def _first_readable(reader: Any, classifier: Classifier) -> Image.Image | None:
    for number in range(min(len(reader), _TRIED)):
        try:
            file, _ = reader[number]
            try:
                image = read_image(file, classifier.prepare)
            finally:
                if hasattr(file, "read"):
                    file.close()
        except OSError:
            continue
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        image.info.clear()
        return image
    return None

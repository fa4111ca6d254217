"""What the blocks of the how-to pages take as given: photos, a trained run, and recipes of short runs."""

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from timm_accel.recipes import Recipe, build_run

CLASSES = ("cat", "dog", "owl")
SHORT: dict[str, Any] = {
    "model": "test_resnet",
    "pretrained": False,
    "image_size": 32,
    "num_epochs": 3,
    "batch_size": 8,
    "opt": "adamw",
    "lr": 0.01,
    "warmup_epochs": 0,
    "freeze_epochs": 0,
    "loss": "ce",
    "smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema_decay": None,
    "num_workers": 0,
}
_FOLDER = tempfile.TemporaryDirectory()


def write_photos(folder: str | Path, count: int = 10) -> Path:
    """Write images of three classes, ``folder/SPLIT/CLASS/NUMBER.jpg``; their strongest color tells their class.

    The last image of each class has the color of the next class: a wrong label.

    Args:
        folder: The folder.
        count: How many images of a class ``train`` has; ``val`` and ``test`` have half as many.
    """
    random = np.random.default_rng(0)
    for split, images in {"train": count, "val": count // 2, "test": count // 2}.items():
        for label, name in enumerate(CLASSES):
            (Path(folder) / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = random.integers(0, 156, (6, 8, 3))
                pixels[..., (label + (number == images - 1)) % 3] += 100
                image = Image.fromarray(pixels.astype("uint8")).resize((64, 48), Image.Resampling.BICUBIC)
                image.save(Path(folder) / split / name / f"{number}.jpg")
    return Path(folder)


@cache
def _trained_run() -> Path:
    folder = Path(_FOLDER.name)
    run = folder / "run"
    data = write_photos(folder / "photos")
    build_run(Recipe(**{**SHORT, "data_dir": str(data), "run_dir": str(run)})).train()
    return run


def write_runs(*folders: str) -> None:
    """Write a run of three epochs into each folder. It is trained once."""
    for folder in folders:
        shutil.copytree(_trained_run(), folder)


def no_workers() -> None:
    """Let trainers of the page load images without processes, which take long to start. `run_page` ends this."""
    defaults = {"num_workers": 0, "worker_init_fn": None}
    patch("timm_accel.training.preparation.worker_kwargs", return_value=defaults).start()


def short_runs() -> None:
    """Let each recipe of the page have the options `SHORT`, whatever else it says. `run_page` ends this."""
    check = Recipe.__post_init__

    def shortened(recipe: Recipe) -> None:
        for name, value in SHORT.items():
            object.__setattr__(recipe, name, value)
        check(recipe)

    patch.object(Recipe, "__post_init__", shortened).start()

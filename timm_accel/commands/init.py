"""Write a recipe and a training script to start from."""

from importlib.resources import files
from pathlib import Path

from timm_accel.atomic import atomic_write
from timm_accel.terminal import print_fitted

_TEMPLATES = files("timm_accel.commands") / "templates"
_NAMES = ("recipe.yaml", "train.py")


def init(folder: Path = Path(".")) -> None:
    """Write recipe.yaml and train.py into a folder, to start from.

    Args:
        folder: The folder; it is created.

    Raises:
        FileExistsError: One of the files exists.
        OSError: Nothing can be written there.
    """
    for path in (folder / name for name in _NAMES):
        if path.exists() or path.is_symlink():
            raise FileExistsError(
                f"Expected no file of this name, since files are never overwritten, but got {str(path)!r}. Name "
                "another folder, or move the file away."
            )
    for name in _NAMES:
        with atomic_write(folder / name) as unfinished:
            unfinished.write_text((_TEMPLATES / name).read_text(encoding="utf-8"), encoding="utf-8")
    print_fitted(f"Train with the recipe:  timm-accel train --config {folder / 'recipe.yaml'}")
    print_fitted(f"or with the script:     python {folder / 'train.py'}")

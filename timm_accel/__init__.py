"""Train timm image classifiers on pytorch-accelerated: mixins, callbacks and builders that are right and reproducible.

Submodules load on first use, so that importing the package is cheap and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm_accel.data import create_datasets as create_datasets
    from timm_accel.models import create_classifier as create_classifier
    from timm_accel.predict import evaluate_classifier as evaluate_classifier
    from timm_accel.predict import load_classifier as load_classifier
    from timm_accel.recipes import Recipe as Recipe
    from timm_accel.trainers import TimmMixupTrainer as TimmMixupTrainer
    from timm_accel.trainers import TimmTrainer as TimmTrainer
    from timm_accel.training import LoopTrainer as LoopTrainer

__version__ = "0.1.0"

_HOMES = {
    "LoopTrainer": "timm_accel.training",
    "Recipe": "timm_accel.recipes",
    "TimmMixupTrainer": "timm_accel.trainers",
    "TimmTrainer": "timm_accel.trainers",
    "create_classifier": "timm_accel.models",
    "create_datasets": "timm_accel.data",
    "evaluate_classifier": "timm_accel.predict",
    "load_classifier": "timm_accel.predict",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

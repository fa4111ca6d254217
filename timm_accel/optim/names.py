"""Check the names of optimizers: which exist, and which cannot run on this machine."""

from importlib.util import find_spec

import torch
from timm.optim import list_optimizers

from timm_accel.messages import nearest

LOOKAHEAD = "lookahead_"
_PACKAGES = {"fused": "apex", "bnb": "bitsandbytes"}


def _excluded() -> dict[str, str]:
    return {
        name: f"it needs a CUDA GPU and the package {package}"
        for prefix, package in _PACKAGES.items()
        for name in list_optimizers(f"{prefix}*")
    }


EXCLUDED = _excluded()
"""The optimizers of timm that need a GPU, each with its reason; ``lookahead_`` may stand before them too."""


def check_optimizer(name: str) -> None:
    """Raise when no optimizer has this name, or when it cannot run here.

    Args:
        name: A name of ``timm.optim.list_optimizers()`` in any case, with ``lookahead_`` before it if wanted.

    Raises:
        ValueError: The name is unknown, or needs a GPU where there is none.
        ModuleNotFoundError: Its package is not installed.
    """
    known = list_optimizers()
    lowered = str(name).lower()
    base = lowered.removeprefix(LOOKAHEAD)
    if base not in known:
        prefix = LOOKAHEAD if lowered.startswith(LOOKAHEAD) else ""
        raise ValueError(
            f"Expected opt to be an optimizer of timm, but got {name!r}. "
            f"{nearest(lowered, [prefix + each for each in known])}"
        )
    if base not in EXCLUDED:
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"Expected opt to be an optimizer that runs here, but got {name!r}: {EXCLUDED[base]}. Choose another, such "
            f"as {_counterpart(base)!r}."
        )
    package = next(package for prefix, package in _PACKAGES.items() if base.startswith(prefix))
    if find_spec(package) is None:
        how = "pip install bitsandbytes" if package == "bitsandbytes" else "the steps at github.com/NVIDIA/apex"
        raise ModuleNotFoundError(
            f"Expected {package!r} to be installed for opt={name!r}, but it is missing. Follow {how}.", name=package
        )


def _counterpart(name: str) -> str:
    """Return torch's or timm's version of an optimizer from another package."""
    plain = name.removeprefix("fused").removeprefix("bnb").removesuffix("8bit")
    return plain if plain in list_optimizers() else "adamw"

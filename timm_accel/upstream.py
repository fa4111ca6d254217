"""Import pytorch-accelerated without its side effect, and spare a run what accelerate looks up on the disk.

Its ``__init__`` seeds Python, NumPy and torch with 42 (pytorch-accelerated 0.1.61), so an import replaces the user's
random state. The package imports it only here, where the state is restored.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import accelerate.optimizer
import numpy as np
import torch

_python, _numpy, _torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

from pytorch_accelerated.callbacks import (  # noqa: E402
    CallbackHandler,
    CallbackMethodNotImplementedError,
    ConvertSyncBatchNormCallback,
    ModelEmaCallback,
    MoveModulesToDeviceCallback,
    StopTrainingError,
    TerminateOnNaNCallback,
    TrainerCallback,
)
from pytorch_accelerated.run_config import TrainerRunConfig  # noqa: E402
from pytorch_accelerated.trainer import Trainer  # noqa: E402
from pytorch_accelerated.utils import DataLoaderSlice  # noqa: E402

random.setstate(_python)
np.random.set_state(_numpy)
torch.set_rng_state(_torch)
if _devices:
    torch.cuda.set_rng_state_all(_devices)
else:
    torch.cuda.manual_seed_all(torch.initial_seed())  # the seed that the first use of a GPU applies

__all__ = [
    "CallbackHandler",
    "CallbackMethodNotImplementedError",
    "ConvertSyncBatchNormCallback",
    "DataLoaderSlice",
    "ModelEmaCallback",
    "MoveModulesToDeviceCallback",
    "StopTrainingError",
    "TerminateOnNaNCallback",
    "Trainer",
    "TrainerCallback",
    "TrainerRunConfig",
    "remembered_lookups",
]


@contextmanager
def remembered_lookups() -> Iterator[None]:
    """Let accelerate look for the package lomo_optim once in a run: it does so twice in each step (accelerate 1.15).

    The lookup goes through every folder of ``sys.path``.
    """
    lookup = getattr(accelerate.optimizer, "is_lomo_available", None)
    if lookup is None:
        yield
        return
    accelerate.optimizer.is_lomo_available = cache(lookup)
    try:
        yield
    finally:
        accelerate.optimizer.is_lomo_available = lookup

"""Import pytorch-accelerated without its side effect.

Its ``__init__`` seeds Python, NumPy and torch with 42 (pytorch-accelerated 0.1.61), so an import replaces the user's
random state. The package imports it only here, where the state is restored.
"""

import random

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
]

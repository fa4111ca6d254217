"""The airlock to pytorch-accelerated: `LoopTrainer`, which repairs its loop, and the randomness rules."""

from timm_accel.training.callback import Callback
from timm_accel.training.default_callbacks import DEFAULT_CALLBACKS
from timm_accel.training.loop import LoopTrainer
from timm_accel.training.run_dir import RUN_CONTENTS, check_run_dir

__all__ = ["DEFAULT_CALLBACKS", "RUN_CONTENTS", "Callback", "LoopTrainer", "check_run_dir"]

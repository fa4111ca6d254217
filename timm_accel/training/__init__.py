"""The adapter to pytorch-accelerated: `LoopTrainer`, which fixes its loop."""

from timm_accel.training.trainer import LoopTrainer

__all__ = ["LoopTrainer"]

"""Optimizers over timm's factory, with parameter groups, learning rates from a base, and checked names."""

from timm_accel.optim.create import create_optimizer
from timm_accel.optim.lr_scaling import scale_lr
from timm_accel.optim.names import EXCLUDED, check_optimizer

__all__ = ["EXCLUDED", "check_optimizer", "create_optimizer", "scale_lr"]

"""Optimizers over timm's factory: parameter groups, rates from a base rate, and which names can run here."""

from timm_accel.optim.create import create_optimizer
from timm_accel.optim.lr_scaling import scale_lr
from timm_accel.optim.names import EXCLUDED, check_optimizer

__all__ = ["EXCLUDED", "check_optimizer", "create_optimizer", "scale_lr"]

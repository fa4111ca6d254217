"""The screen before training, and the estimate of time, memory and disk space from its first seconds."""

from timm_accel.callbacks.setup.screen import PrintSetupCallback

__all__ = ["PrintSetupCallback"]

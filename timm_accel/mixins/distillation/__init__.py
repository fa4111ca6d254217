"""Knowledge distillation: the mixin, and the teachers that the student learns from."""

from timm_accel.mixins.distillation.mixin import KINDS, DistillationMixin

__all__ = ["KINDS", "DistillationMixin"]

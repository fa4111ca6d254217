"""Metrics of an evaluation: the mixin, and the default metrics that it counts."""

from timm_accel.mixins.metrics.counts import MacroF1, TopKAccuracy
from timm_accel.mixins.metrics.mixin import ClassificationMetricsMixin

__all__ = ["ClassificationMetricsMixin", "MacroF1", "TopKAccuracy"]

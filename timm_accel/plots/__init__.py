"""Figures of the data and of features, by matplotlib (extra ``plots``)."""

from timm_accel.plots.feature_maps import plot_feature_maps
from timm_accel.plots.figures import plot_augmentations, plot_batch, plot_mixup

__all__ = ["plot_augmentations", "plot_batch", "plot_feature_maps", "plot_mixup"]

"""Figures of the data, by matplotlib (extra ``plots``)."""

from timm_accel.plots.figures import plot_augmentations, plot_batch, plot_mixup

__all__ = ["plot_augmentations", "plot_batch", "plot_mixup"]

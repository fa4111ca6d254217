"""Figures of data, features, predictions, learning rates and learning curves, by matplotlib (extra ``plots``)."""

from timm_accel.plots.attribution import plot_attribution
from timm_accel.plots.confusion import plot_confusion
from timm_accel.plots.feature_maps import plot_feature_maps
from timm_accel.plots.figures import plot_augmentations, plot_batch, plot_mixup, plot_transform
from timm_accel.plots.history import plot_history
from timm_accel.plots.learning_rates import plot_lr_finder, plot_schedule
from timm_accel.plots.losses import plot_top_losses
from timm_accel.plots.predictions import plot_predictions
from timm_accel.plots.saving import save_figure

__all__ = [
    "plot_attribution",
    "plot_augmentations",
    "plot_batch",
    "plot_confusion",
    "plot_feature_maps",
    "plot_history",
    "plot_lr_finder",
    "plot_mixup",
    "plot_predictions",
    "plot_schedule",
    "plot_top_losses",
    "plot_transform",
    "save_figure",
]

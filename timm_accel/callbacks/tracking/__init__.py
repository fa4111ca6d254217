"""A run in experiment trackers: TensorBoard, trackio, wandb, mlflow and others, each point once."""

from timm_accel.callbacks.tracking.services import check_trackers
from timm_accel.callbacks.tracking.tracker import TrackerCallback

__all__ = ["TrackerCallback", "check_trackers"]

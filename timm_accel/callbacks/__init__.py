"""Callbacks only read, record, write or stop; removing one never changes the weights."""

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.csv_history import CsvHistoryCallback
from timm_accel.callbacks.defaults import (
    DEFAULT_CALLBACKS,
    MoveModulesToDeviceCallback,
    StopOnNonFiniteLossCallback,
)
from timm_accel.callbacks.early_stopping import EarlyStoppingCallback
from timm_accel.callbacks.output.print_metrics import PrintMetricsCallback
from timm_accel.callbacks.output.print_results import PrintResultsCallback
from timm_accel.callbacks.output.progress_bar import ProgressBarCallback
from timm_accel.callbacks.save_best import SaveBestCallback
from timm_accel.callbacks.save_state import SaveStateCallback
from timm_accel.callbacks.setup import PrintSetupCallback
from timm_accel.callbacks.time_limit import TimeLimitCallback
from timm_accel.callbacks.tracking import TrackerCallback, check_trackers
from timm_accel.callbacks.unreadable_images import UnreadableImagesCallback

__all__ = [
    "DEFAULT_CALLBACKS",
    "Callback",
    "CsvHistoryCallback",
    "EarlyStoppingCallback",
    "MoveModulesToDeviceCallback",
    "PrintMetricsCallback",
    "PrintResultsCallback",
    "PrintSetupCallback",
    "ProgressBarCallback",
    "SaveBestCallback",
    "SaveStateCallback",
    "StopOnNonFiniteLossCallback",
    "TimeLimitCallback",
    "TrackerCallback",
    "UnreadableImagesCallback",
    "check_trackers",
]

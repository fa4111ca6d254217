"""A page about a run, or about several side by side, as one HTML file that opens offline."""

from timm_accel.report.callback import WriteReportCallback
from timm_accel.report.writing import report

__all__ = ["WriteReportCallback", "report"]

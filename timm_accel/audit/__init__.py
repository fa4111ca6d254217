"""Audit a dataset before a run: unreadable files, duplicates, leaks, classes, sizes and colors."""

from timm_accel.audit.report import Audit, ReadableImage, Split, Unreadable
from timm_accel.audit.run import audit

__all__ = ["Audit", "ReadableImage", "Split", "Unreadable", "audit"]

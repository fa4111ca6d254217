"""What is wrong with an image set, told before a run: unreadable files, duplicates, leaks, classes, sizes, colours."""

from timm_accel.audit.report import Audit, Picture, Split, Unreadable
from timm_accel.audit.run import audit

__all__ = ["Audit", "Picture", "Split", "Unreadable", "audit"]

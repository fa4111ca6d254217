"""Audit a dataset before a run: unreadable files, duplicates, leaks, classes, sizes and colors."""

from timm_accel.audit.report import Audit, ReadableImage, Split, Unreadable
from timm_accel.audit.run import audit
from timm_accel.audit.suspects import Suspect, find_suspects, write_corrected, write_suspects

__all__ = [
    "Audit",
    "ReadableImage",
    "Split",
    "Suspect",
    "Unreadable",
    "audit",
    "find_suspects",
    "write_corrected",
    "write_suspects",
]

"""Data sets for image classification, built from timm's readers and transforms."""

from timm_accel.data.classes import class_names
from timm_accel.data.datasets import ImageFolderDataset, create_datasets
from timm_accel.data.digits import write_digits

__all__ = ["ImageFolderDataset", "class_names", "create_datasets", "write_digits"]

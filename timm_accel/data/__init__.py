"""Datasets for image classification, built from timm's readers and transforms."""

from timm_accel.data.classes import class_names
from timm_accel.data.datasets import ImageFolderDataset, create_datasets
from timm_accel.data.digits import write_digits
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.readers.filename_reader import FilenameReader
from timm_accel.data.readers.folder_index import FolderReader
from timm_accel.data.readers.manifest_reader import ManifestReader
from timm_accel.data.samplers import RepeatedSampler, class_balanced_sampler
from timm_accel.data.sources import Source
from timm_accel.data.splits.splitting import split_by_class
from timm_accel.data.streams.streamed_images import StreamedImages
from timm_accel.data.transforms.prepare_image import PrepareImage

__all__ = [
    "FilenameReader",
    "FolderReader",
    "ImageFolderDataset",
    "LabeledImages",
    "ManifestReader",
    "PrepareImage",
    "RepeatedSampler",
    "Source",
    "StreamedImages",
    "class_balanced_sampler",
    "class_names",
    "create_datasets",
    "split_by_class",
    "write_digits",
]

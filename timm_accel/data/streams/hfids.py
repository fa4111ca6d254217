"""Streams of Hugging Face datasets, from the hub or from a local folder of images or parquet shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Image, get_dataset_split_names, load_dataset_builder
from pyarrow.parquet import read_metadata
from timm.data.readers._hfds import get_class_labels
from timm.data.readers.reader_hfids import ReaderHfids

from timm_accel.data.splitting import split_name
from timm_accel.data.streams.stream_reader import ClassMap, StreamReader, missing_split, read_class_map


class HfidsStream(StreamReader, ReaderHfids):
    """Extend timm's reader of Hugging Face streams: it returns bytes, and counts the images where no count is stored.

    Source: ``timm.data.readers.reader_hfids.ReaderHfids``.
    """

    def __init__(self, name: str, split: str, root: str | None, download: bool, class_map: ClassMap | None) -> None:
        builder = load_dataset_builder(name, cache_dir=root)
        if download:
            builder.download_and_prepare()
        stream = builder.as_streaming_dataset(split=split)  # a local folder has its features only after this
        _check_columns(builder, name)
        known = (builder.info.splits or {}).get(split)
        count = known.num_examples if known is not None and known.num_examples else _count(builder, name, split)
        super().__init__(name, root=root, split=split, download=download, num_samples=count, input_img_mode="")
        self.builder, self.needs_shards, self.num_shards = builder, not download, stream.n_shards
        self.class_to_idx = get_class_labels(builder.info, self.target_key)
        self.remap_class = builder.info.features[self.target_key].dtype == "string"
        if class_map is not None:
            self.class_to_idx = read_class_map(class_map)
        elif not self.class_to_idx:
            labels = {label for each in get_dataset_split_names(name) for label in _labels(builder, each)}
            names = sorted(labels) if self.remap_class else range(max(labels) + 1)
            self.class_to_idx = {str(each): number for number, each in enumerate(names)}

    def _parts_per_process(self) -> int:
        """Return the number of all shards where they do not divide evenly: each rank then takes every n-th sample."""
        shared = self.num_shards % self.dist_num_replicas == 0 or not self.needs_shards
        return super()._parts_per_process() if shared else self.num_shards

    def _lazy_init(self) -> None:
        super()._lazy_init()
        self.ds = self.ds.cast_column(self.input_key, Image(decode=False))


def open_hfids(
    name: str, split: str, root: str | None = None, download: bool = False, class_map: ClassMap | None = None
) -> HfidsStream:
    """Open a split of a Hugging Face dataset as a stream.

    Args:
        name: Its name, or a local folder of images or of parquet shards.
        split: ``train``, ``val``, ``test`` or a synonym.
        root: The folder of Hugging Face's downloads.
        download: Whether to download and prepare the complete dataset first, as Arrow files.
        class_map: The names of the classes: a map from name to label, or a file with one name a line; None for those
            of the dataset.

    Raises:
        FileNotFoundError: There is no such dataset.
        ValueError: There is no such split, or it has no image and label.
    """
    try:
        named = {split_name(each): each for each in get_dataset_split_names(name)}
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"Expected hfids/NAME with a Hugging Face dataset or a local folder, but got {name!r} "
            f"({str(error).splitlines()[0]}). Correct the name."
        ) from error
    if split not in named:
        raise missing_split(split, sorted(named), repr(name))
    return HfidsStream(name, named[split], root, download, class_map)


def _check_columns(builder: Any, name: str) -> None:
    columns = sorted(builder.info.features or ())
    if not {"image", "label"} <= {*columns}:
        raise ValueError(
            f"Expected the columns 'image' and 'label' in hfids/{name}, but got {columns}. Rename them in the dataset."
        )


def _count(builder: Any, name: str, split: str) -> int:
    """Count the images of a local dataset: from the footers of parquet files, otherwise by reading it."""
    if not Path(name).exists():
        raise ValueError(
            f"Expected hfids/{name} to tell its number of images, since the schedule needs it, but got none. Pass "
            "Source(…, download=True), or use hfds/."
        )
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    if files and all(file.endswith(".parquet") for file in files):
        return sum(read_metadata(file).num_rows for file in files)
    return sum(1 for _ in _labels(builder, split))


def _labels(builder: Any, split: str) -> Iterator[Any]:
    return (sample["label"] for sample in builder.as_streaming_dataset(split=split).select_columns(["label"]))

"""Streams of Hugging Face datasets, from the hub or from a local folder of images or parquet shards."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Image, get_dataset_split_names, load_dataset_builder
from pyarrow.parquet import read_metadata
from timm.data.readers._hfds import get_class_labels
from timm.data.readers.reader_hfids import ReaderHfids

from timm_accel.data.readers.hf_reader import find_columns, found_names
from timm_accel.data.splits.splitting import split_name
from timm_accel.data.streams.shard_members import ranges
from timm_accel.data.streams.shard_rows import INTERLEAVED, ShardRows
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
        image_key, label_key = find_columns(builder.info.features, f"hfids/{name}")
        _check_single(builder.info.features[label_key], name, label_key)
        known = getattr((builder.info.splits or {}).get(split), "num_examples", None)
        self.shard_lengths = _shard_lengths(builder, stream, name, split, label_key, known)
        count = known if self.shard_lengths is None else sum(self.shard_lengths)
        keys = {"input_key": image_key, "target_key": label_key}
        super().__init__(name, root=root, split=split, download=download, num_samples=count, input_img_mode="", **keys)
        self._where = f"hfids/{name} {split}"  # what an image without a path is called
        self.builder, self.num_shards = builder, stream.n_shards
        self.needs_shards = not download and self.shard_lengths is None
        self.class_to_idx = get_class_labels(builder.info, label_key)
        if class_map is not None:
            self.class_to_idx = read_class_map(class_map)
        elif not self.class_to_idx:
            splits = get_dataset_split_names(name)
            names = found_names(label for each in splits for label in _labels(builder, each, label_key))
            self.class_to_idx = {each: number for number, each in enumerate(names)}

    def parts_per_process(self, num_processes: int) -> int:
        """Return the number of all shards where they do not divide evenly: each rank then takes every n-th sample."""
        shared = self.num_shards % num_processes == 0 or not self.needs_shards
        return super().parts_per_process(num_processes) if shared else self.num_shards

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for image, label in super().__iter__():
            yield _named(image, self._where), label

    @property
    def epoch_count(self) -> Any:
        """The epoch, under the name that timm's other readers have for it."""
        return self.epoch

    def _lazy_init(self) -> None:
        if not self.download and self.shard_lengths is not None:
            self.ds = self._share(self.shard_lengths)
            return
        super()._lazy_init()
        self.ds = self.ds.cast_column(self.input_key, Image(decode=False))

    def _share(self, lengths: list[int]) -> ShardRows:
        """Return the rows of this worker of this rank, in training shuffled; some shards come in part."""
        order = list(range(len(lengths)))
        if self.is_training:
            random.Random(f"{self.common_seed} {self.epoch_count.value}").shuffle(order)
        stream = self.builder.as_streaming_dataset(split=self.split).cast_column(self.input_key, Image(decode=False))

        def read(shard: int, rows: range) -> Iterator[dict[str, Any]]:
            part = stream.shard(num_shards=len(lengths), index=shard).skip(rows.start).take(len(rows))
            # iterating over the part itself would divide it among the loader workers
            for number, row in zip(rows, part.iter(batch_size=1), strict=False):
                values = {name: values[0] for name, values in row.items()}
                image = _named(values[self.input_key], f"{self._where}, shard {shard}, row {number}")
                yield values | {self.input_key: image}

        parts = [
            (order[number], range(lengths[order[number]])[begin:end])
            for number, begin, end in ranges([lengths[shard] for shard in order], self.reader_number, self.num_readers)
        ]
        seen = {self.input_key: None, self.target_key: 0}
        size, width = (self.shuffle_size, INTERLEAVED) if self.is_training else (1, 1)
        return ShardRows(parts, read, size, self.worker_seed, self._passed, seen, width)


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
        ValueError: There is no such split, it has no image and label, or is multi-label.
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


def _named(image: dict[str, Any] | None, where: str) -> dict[str, Any]:
    """Return a file with a path, which is where it lies unless it has one; None is an empty cell."""
    given = image or {"bytes": b""}
    return given | {"path": given.get("path") or where}


def _check_single(feature: Any, name: str, label_key: str) -> None:
    if hasattr(feature, "feature"):  # of lists
        raise ValueError(
            f"Expected one label for each image of hfids/{name}, but got lists in {label_key!r}. Use hfds/{name}, "
            "which reads several."
        )


def _shard_lengths(
    builder: Any, stream: Any, name: str, split: str, label_key: str, known: int | None
) -> list[int] | None:
    """Return the images in each shard; None where a dataset tells the number of all images, but not of each shard.

    Those of local parquet files are in their footers. A local dataset that tells nothing is counted by reading it.
    """
    local, count = Path(name).exists(), stream.n_shards
    files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    if local and len(files) == count and all(file.endswith(".parquet") for file in files):
        return [read_metadata(file).num_rows for file in files]
    if known:
        return [known] if count == 1 else None
    if not local:
        raise ValueError(
            f"Expected hfids/{name} to tell its number of images, since the schedule needs it, but got none. Pass "
            "Source(…, download=True), or use hfds/."
        )
    shards = (stream.shard(num_shards=count, index=index) for index in range(count))
    return [sum(1 for _ in shard.select_columns([label_key])) for shard in shards]


def _labels(builder: Any, split: str, label_key: str) -> Iterator[Any]:
    return (sample[label_key] for sample in builder.as_streaming_dataset(split=split).select_columns([label_key]))

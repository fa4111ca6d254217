"""Streams of TensorFlow Datasets."""

from importlib.util import find_spec
from typing import Any

from torch.utils.data import get_worker_info

from timm_accel.data.splits.splitting import split_name
from timm_accel.data.streams.stream_reader import ClassMap, StreamReader, missing_split, read_class_map

if find_spec("tensorflow_datasets") is not None:
    from timm.data.readers.reader_tfds import ReaderTfds
else:  # the module can be imported without its extra
    from timm.data.readers.reader import Reader as ReaderTfds


class _Shuffled:
    """Wrap a builder: its datasets are shuffled before timm repeats them; timm shuffles later, so images repeat.

    Args:
        builder: A builder of TensorFlow Datasets.
        size: The size of the shuffle buffer in images.
        seed: The seed of the order.
    """

    def __init__(self, builder: Any, size: int, seed: int) -> None:
        self.builder, self.size, self.seed = builder, size, seed

    def as_dataset(self, **options: Any) -> Any:
        return self.builder.as_dataset(**options).shuffle(self.size, seed=self.seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.builder, name)


class TfdsStream(StreamReader, ReaderTfds):
    """Extend timm's reader of TensorFlow Datasets: it returns bytes, not decoded images.

    Source: ``timm.data.readers.reader_tfds.ReaderTfds``.
    """

    builder: Any
    shuffle_size: int
    needs_shards = False  # timm divides shards where they are too few

    def share(self, batch_size: int, num_workers: int, rank: int, num_processes: int, seed: int) -> None:
        if num_processes > 1 and num_workers == 0:  # timm 1.0.31 shards only in workers
            raise ValueError(
                f"Expected num_workers to be at least 1 for tfds/ on {num_processes} processes, since each would read "
                'the same images without, but got 0. Pass train_dataloader_kwargs={"num_workers": 1}.'
            )
        super().share(batch_size, num_workers, rank, num_processes, seed)

    def _lazy_init(self) -> None:
        if not self.is_training:
            super()._lazy_init()
            return
        builder, size = self.builder, self.shuffle_size
        self.builder = _Shuffled(builder, min(self.num_samples, size), self.worker_seed)
        workers = 1 if (info := get_worker_info()) is None else info.num_workers
        self.shuffle_size = self.dist_num_replicas * workers  # timm divides by it: a buffer of one, in order
        try:
            super()._lazy_init()
        finally:
            self.builder, self.shuffle_size = builder, size

    def _input_decoders(self) -> dict[str, object]:
        import tensorflow_datasets as tfds

        return {self.input_key: tfds.decode.SkipDecoding()}

    def __iter__(self) -> object:
        samples = super().__iter__()
        for number, (content, label) in enumerate(samples, self._passed):
            yield {"bytes": content, "path": f"{self.builder.name}, {self.split}, number {number}"}, int(label)


def open_tfds(
    name: str, split: str, root: str | None = None, download: bool = False, class_map: ClassMap | None = None
) -> TfdsStream:
    """Open a split of a TensorFlow dataset.

    Args:
        name: The name of the dataset.
        split: ``train``, ``val``, ``test`` or a synonym.
        root: The folder of prepared datasets; None for TensorFlow's default.
        download: Whether to download and prepare it.
        class_map: The names of the classes: a map from name to label, or a file with one name a line; None for those
            of the dataset.

    Raises:
        FileNotFoundError: There is no such dataset, or it is not prepared.
        ValueError: There is no such split.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"Expected tfds/NAME with a TensorFlow dataset, but got {name!r}. Correct the name, or pass the root that "
            "holds it."
        ) from error
    if download:
        builder.download_and_prepare()
    named = {split_name(each): each for each in builder.info.splits}
    if not named:
        raise FileNotFoundError(
            f"Expected tfds/{name} to be prepared in {str(builder.data_dir)!r}, but got none. Pass download=True, or "
            "the root that holds it."
        )
    if split not in named:
        raise missing_split(split, sorted(named), repr(f"tfds/{name}"))
    reader = TfdsStream(name, root=root, split=named[split], input_img_mode="")
    if class_map is not None:
        reader.class_to_idx = read_class_map(class_map)
    if not reader.class_to_idx:
        raise ValueError(
            f"Expected class_map to name the classes, since tfds/{name} has no names for its labels, but got None. "
            "Pass Source(…, class_map=…), a file with one name a line or a dict of names and labels."
        )
    return reader

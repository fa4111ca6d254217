"""Extend timm's readers of streams: late sharding, epochs without carried state, and bytes instead of images."""

import random
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from timm_accel.messages import counted

ClassMap = str | Path | Mapping[str, int]
"""The names of classes: name to label, or a file with one name a line, as ``timm.data`` reads them."""


def read_class_map(class_map: ClassMap) -> dict[str, int]:
    """Return the label of each class name.

    Args:
        class_map: A map from name to label, or a ``.txt`` file with one name a line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another kind, or names no class, or one twice.

    Source: ``timm.data.readers.class_map.load_class_map``, which counts empty lines as a class.
    """
    if isinstance(class_map, Mapping):
        names: Mapping[str, int] = class_map
    else:
        path = Path(class_map)
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected class_map to be a file with one name a line, but got {str(path)!r}, which is not a file. "
                "Correct the path."
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Expected class_map to be text in UTF-8 with one name a line, but got {str(path)!r} ({error}). Save "
                "it as that."
            ) from error
        lines = [line.strip() for line in lines]
        while lines and not lines[-1]:
            lines.pop()
        if "" in lines or len(set(lines)) < len(lines):
            raise ValueError(
                f"Expected class_map to have each name once and no empty line between, but got {str(path)!r}. Correct "
                "it."
            )
        names = {name: label for label, name in enumerate(lines)}
    if not names:
        raise ValueError(f"Expected class_map to name the classes, but got {class_map!r} without any. Fill it in.")
    return dict(names)


class StreamReader:
    """Mix into one of timm's stream readers: its samples depend only on (seed, epoch, rank, worker).

    timm's readers (1.0.31) read the rank when they are created, often before distributed training starts. They seed
    their buffers from torch's worker seed, and keep the state of their draws between epochs. Persistent workers, new
    workers and a resumed run then read different orders.

    Source: ``timm.data.readers``.
    """

    ds: Any
    worker_info: Any
    num_samples: int
    num_shards: int
    is_training: bool
    batch_size: int
    common_seed: int
    epoch_count: Any
    dist_rank: int
    dist_num_replicas: int
    num_workers: int
    needs_shards = True
    """Whether each worker reads separate shards."""
    skips = False
    """Whether unreadable samples are skipped."""
    first = 0
    """The samples that the next iteration, and no other, passes over; they are read only where a stream has to."""
    _passed = 0

    def share(self, batch_size: int, num_workers: int, rank: int, num_processes: int, seed: int) -> None:
        """Choose which part of the stream this rank reads.

        Args:
            batch_size: In training, each worker returns a multiple of it.
            num_workers: The loader workers of this process, 0 for none.
            rank: The rank of this process.
            num_processes: The number of ranks that share the stream.
            seed: The seed of the order.

        Raises:
            ValueError: A worker would have nothing to read.
        """
        self.batch_size, self.dist_rank, self.dist_num_replicas = batch_size, rank, num_processes
        self.common_seed = seed & 0x7FFFFFFF
        self.ds = self.worker_info = None
        self.set_loader_cfg(num_workers)  # type: ignore[attr-defined]
        if self.is_training:
            self._check_workers(num_workers)

    def _check_workers(self, num_workers: int) -> None:
        """Raise where a worker would have nothing to read, since the ranks would then wait for each other forever."""
        processes, parts = self.dist_num_replicas, self.num_shards if self.needs_shards else self.num_samples
        max_workers = self.parts_per_process(processes)
        if max_workers >= max(1, num_workers):
            return
        kind = "shards" if self.needs_shards else "images"
        remedy = (
            f'Pass train_dataloader_kwargs={{"num_workers": {max_workers}}}' if max_workers else "Use fewer processes"
        )
        raise ValueError(
            f"Expected a stream to have {kind} for each loader worker of each process, but got {parts} for "
            f"{counted(max(1, num_workers), 'worker')} on each of {counted(processes, 'process')}. {remedy}, "
            f"or write the data in more {kind}."
        )

    def parts_per_process(self, num_processes: int) -> int:
        """Return how many shards, or images of a stream that is divided by images, each process has."""
        return (self.num_shards if self.needs_shards else self.num_samples) // num_processes

    @property
    def num_readers(self) -> int:
        """The number of readers: the loader workers of all ranks."""
        return self.dist_num_replicas * self.num_workers

    @property
    def reader_number(self) -> int:
        """The number of this loader worker among all readers."""
        return self.dist_rank * self.num_workers + _worker()

    @property
    def worker_seed(self) -> int:
        """The seed of this worker's buffer in this epoch; timm's would depend on when the worker started."""
        drawn = random.Random(f"{self.common_seed} {self.epoch_count.value} {self.dist_rank} {_worker()}")
        return drawn.getrandbits(31)

    @worker_seed.setter
    def worker_seed(self, seed: int) -> None:
        pass

    def __iter__(self) -> Any:
        self.ds = self.worker_info = None
        self._passed, self.first = self.first, 0
        return islice(super().__iter__(), self._passed, None)  # type: ignore[misc]

    @property
    def samples_per_worker(self) -> int:
        """The number of images that each worker returns in an epoch."""
        return self._num_samples_per_worker()  # type: ignore[attr-defined]


def _worker() -> int:
    return 0 if (info := get_worker_info()) is None else info.id


def missing_split(split: str, known: Iterable[str], where: str) -> ValueError:
    """Return the error for a stream that lacks a split; streams are never split here."""
    return ValueError(
        f"Expected a split {split!r} in {where}, but got {sorted(known)} alone. Evaluate on one of those by "
        "eval_split, or name a dataset with that split."
    )


def refuse_streams(readers: Iterable[Any]) -> None:
    """Raise a `ValueError` when a reader to be cached is a stream."""
    if any(isinstance(reader, StreamReader) for reader in readers):
        raise ValueError(
            "Expected no cache for a stream, since its images have no indices, but got one. Leave cache out."
        )

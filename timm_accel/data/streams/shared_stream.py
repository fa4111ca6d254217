"""A stream whose images are shared among the ranks of a launch: each decodes every n-th batch."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.streams.streamed_images import StreamedImages


class SharedStream(IterableDataset):
    """Whole batches of a stream, each as (key, batch); the keys sort as one process reads them.

    Each process reads all bytes, since a stream has no indices, but decodes only its images. The batch is None if none
    of its images can be read.

    Args:
        dataset: The stream, in evaluation. Its `share` is called first, as for one process.
        batch_size: Images at a time.
        owns: Whether this process computes the batch of a number.
    """

    def __init__(self, dataset: StreamedImages, batch_size: int, owns: Callable[[int], bool]) -> None:
        self.dataset, self.batch_size, self.owns = dataset, batch_size, owns

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Any]]:
        worker = 0 if (info := get_worker_info()) is None else info.id
        samples, number, bad = iter(self.dataset.reader), 0, 0
        while files := list(islice(samples, self.batch_size)):
            if self.owns(number):
                loaded = []
                for place, (file, label) in enumerate(files, number * self.batch_size):
                    read = self.dataset.read(file, label, bad, worker, place)
                    bad += read is None
                    loaded.append(None if read is None else self.dataset.transformed(*read))
                yield (number, worker), LabeledImages.collate_fn(loaded)
            number += 1

"""What the loop asks of a loader: an epoch's number, the batches that are left, and a stream's share."""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from accelerate import Accelerator, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, Sampler

from timm_accel.data.seeding import seed_streamed_image, seeded_dataset_of
from timm_accel.data.streams.streamed_images import StreamedImages
from timm_accel.upstream import DataLoaderSlice


def remaining(loader: Any, start: int) -> Iterable[Any]:
    """Return the loader's batches from number `start` on; a map-style dataset loads none of the skipped images."""
    if start == 0:
        return loader
    if isinstance(loader, DataLoaderSlice):
        return islice(remaining(loader.dl, start), len(loader) - start)
    if isinstance(loader, DataLoader):
        return skip_first_batches(loader, start)
    return islice(loader, start, None)


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a prepared loader, or its replacement, which epoch comes next."""
    loader = getattr(loader, "dl", loader)  # pytorch-accelerated's DataLoaderSlice
    if isinstance(loader, DataLoader) and hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)


def is_stream(loader: Any) -> bool:
    """Whether a loader, or None, is over `StreamedImages`."""
    return isinstance(getattr(loader, "dataset", None), StreamedImages)


def share_stream(loader: Any, accelerator: Accelerator, seed: int) -> None:
    """Tell the stream of a loader, before the loader starts, its share and its seed; leave other datasets alone.

    Args:
        loader: Any loader, or None.
        accelerator: It knows the rank and the number of processes.
        seed: The run's seed.

    Raises:
        ValueError: Some loader worker would get nothing to read.
    """
    if not is_stream(loader):
        return
    stream = loader.dataset
    processes = accelerator.process_index, accelerator.num_processes
    stream.share(loader.batch_size, loader.num_workers, *processes, seed, partial(seed_streamed_image, seed))
    if stream.is_training and accelerator.is_main_process:
        warnings.warn(
            "The training images are a stream: they are shuffled within a buffer, each worker fills its part of an "
            "epoch up to full batches, and a resumed run is exact only with the same number of workers and processes.",
            stacklevel=2,
        )


def count_batches(loader: Any) -> int:
    """Return the number of batches that the loader gives: a slice may promise more than its loader has."""
    return min(len(loader), len(loader.dl)) if isinstance(loader, DataLoaderSlice) else len(loader)


def device_transform_of(loader: Any) -> Any:
    """Return what the loop applies to each batch of the loader on the device; None where images arrive ready."""
    dataset = seeded_dataset_of(getattr(loader, "dl", loader))  # pytorch-accelerated's DataLoaderSlice
    return None if dataset is None else getattr(dataset.dataset, "device_transform", None)


class ShardedBatches(Sampler[list[Any]]):
    """Deals the batches of a global order out to the ranks, and the rest evenly: no image comes twice or is left out.

    Full batches go to the ranks as accelerate's do. The rest of an epoch is one more, shorter batch on every rank; with
    fewer images than ranks it joins the last full ones.

    Args:
        batches: torch's sampler of batches; its ``drop_last`` is False.
        rank: This process.
        num_processes: The ranks.
    """

    shards_itself = True
    drop_last = False

    def __init__(self, batches: BatchSampler, rank: int, num_processes: int) -> None:
        self.sampler: Any = batches.sampler
        self.batch_size, self.rank, self.num_processes = batches.batch_size, rank, num_processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size * self.num_processes)
        return full + (rest >= self.num_processes)

    def last_batch_sizes(self) -> list[int]:
        """Return the images in the last batch of each rank."""
        rest = len(self.sampler) % (self.batch_size * self.num_processes)
        full = 0 if rest >= self.num_processes else self.batch_size
        return [full + len(range(rank, rest, self.num_processes)) for rank in range(self.num_processes)]

    def __iter__(self) -> Iterator[list[Any]]:
        order, size = iter(self.sampler), self.batch_size
        full: list[Any] = []
        while len(taken := list(islice(order, size * self.num_processes))) == size * self.num_processes:
            if full:
                yield full
            full = taken[self.rank * size : (self.rank + 1) * size]
        share = taken[self.rank :: self.num_processes]
        if len(taken) >= self.num_processes:
            yield from [full, share] if full else [share]
        elif full:
            yield [*full, *share]


def deal_out_rest(loader: Any, rank: int, num_processes: int) -> None:
    """Let a `DataLoader` that keeps its last, shorter batch share that among the ranks; leave others as they are."""
    batches = getattr(loader, "batch_sampler", None)
    if num_processes > 1 and type(batches) is BatchSampler and not batches.drop_last:
        vars(loader)["batch_sampler"] = ShardedBatches(batches, rank, num_processes)  # torch's own assignment refuses

"""What the loop asks of a loader: an epoch's number, the batches that are left, a stream's share, no worker after."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any
from weakref import WeakSet, ref

from accelerate import Accelerator, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from timm_accel.data.seeding import seed_streamed_image, seeded_dataset_of
from timm_accel.data.streams.streamed_images import StreamedImages
from timm_accel.upstream import DataLoaderSlice


def remaining(loader: Any, start: int) -> Iterable[Any]:
    """Return the loader's batches from number `start` on.

    A map-style dataset loads none of the skipped images, and a stream at most a batch of each worker.
    """
    if is_stream(loader):
        return _Part(loader, loader.dataset.start_at(start), None)
    if start == 0:
        return loader
    if isinstance(loader, DataLoaderSlice):
        return _Part(remaining(loader.dl, start), 0, len(loader) - start)
    if isinstance(loader, DataLoader):
        rest = skip_first_batches(loader, start)
        if hasattr(loader, "iteration"):  # the epoch, which accelerate sets back to 0 before 1.15
            rest.iteration = loader.iteration
        return rest
    return _Part(loader, start, None)


class _Part:
    """Some of a loader's batches. Its workers start with the iteration, so that `LoaderWorkers` can watch them."""

    def __init__(self, loader: Any, start: int, stop: int | None) -> None:
        self.dl, self.start, self.stop = loader, start, stop

    def __iter__(self) -> Iterator[Any]:
        return islice(self.dl, self.start, self.stop)


class LoaderWorkers:
    """The workers of the loaders that a run iterates: none outlives the run, whatever ends it.

    torch ends workers with the last reference to their iterator. A loader with persistent workers holds one, and so
    does an exception that somebody keeps.
    """

    def __init__(self) -> None:
        self._loaders: WeakSet[DataLoader] = WeakSet()
        self._iterators: WeakSet[Any] = WeakSet()
        self._workers: WeakSet[Any] = WeakSet()  # multiprocessing holds those that are alive

    def watch(self, loader: Any) -> None:
        """Note the iterators that a loader starts from now on, also where accelerate or a user has wrapped it."""
        for inner in _torch_loaders(loader):
            self._loaders.add(inner)
            vars(inner)["_get_iterator"] = partial(self._start, ref(inner))  # torch calls it for each iterator (2.14)

    def _start(self, loader_ref: Callable[[], Any]) -> Any:
        loader = loader_ref()
        iterator = type(loader)._get_iterator(loader)
        self._iterators.add(iterator)
        self._workers.update(getattr(iterator, "_workers", ()))
        return iterator

    def end(self) -> None:
        """End the workers that are left. A loader that is iterated again starts others."""
        for loader in self._loaders:
            vars(loader).pop("_get_iterator", None)
            if getattr(loader, "_iterator", None) in self._iterators:
                loader._iterator = None  # it would be used again
        for iterator in self._iterators:
            if hasattr(iterator, "_shutdown_workers"):  # only those with workers
                iterator._shutdown_workers()
        for worker in self._workers:
            worker.kill()  # torch's SIGTERM does not end a busy one: see `shield_workers`
            worker.join()


def _torch_loaders(loader: Any, depth: int = 3) -> Iterator[DataLoader]:
    """Yield the torch loaders that start workers when `loader`, which may wrap them, is iterated."""
    if isinstance(loader, DataLoader) and "base_dataloader" not in vars(loader):
        yield loader
    elif depth > 0 and isinstance(loader, list | tuple | dict):
        for each in islice(loader.values() if isinstance(loader, dict) else loader, 100):  # long ones hold no loaders
            yield from _torch_loaders(each, depth - 1)
    elif depth > 0 and hasattr(loader, "__iter__"):
        yield from _torch_loaders(getattr(loader, "__dict__", {}), depth)


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a prepared loader, or its replacement, which epoch comes next."""
    loader = getattr(loader, "dl", loader)  # pytorch-accelerated's DataLoaderSlice
    if isinstance(loader, DataLoader) and hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)


def is_stream(loader: Any) -> bool:
    """Whether a loader, or None, is over `StreamedImages`."""
    return isinstance(getattr(loader, "dataset", None), StreamedImages)


def stream_of(loader: Any) -> StreamedImages | None:
    """Return the `StreamedImages` of a prepared loader; None where there is none."""
    loader = getattr(loader, "dl", loader)  # pytorch-accelerated's DataLoaderSlice
    return loader.dataset if is_stream(loader) else None


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


def batch_sizes(loader: Any, num_processes: int) -> set[int]:
    """Return the numbers of images that a rank's batches have, as far as the loader's sampler tells."""
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler or isinstance(loader.dataset, IterableDataset):
        return set()
    if num_processes > 1 and not batches.drop_last:
        batches = ShardedBatches(batches, 0, num_processes)
        return {batches.batch_size, *batches.last_batch_sizes()}
    rest = 0 if batches.drop_last else len(batches.sampler) % batches.batch_size  # type: ignore[arg-type]
    return {batches.batch_size} | ({rest} if rest else set())


def deal_out_rest(loader: Any, rank: int, num_processes: int) -> None:
    """Let a `DataLoader` that keeps its last, shorter batch share that among the ranks; leave others as they are."""
    batches = getattr(loader, "batch_sampler", None)
    if num_processes > 1 and type(batches) is BatchSampler and not batches.drop_last:
        vars(loader)["batch_sampler"] = ShardedBatches(batches, rank, num_processes)  # torch's own assignment refuses

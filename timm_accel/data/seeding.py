"""Seed all random draws by two rules; no random state is stored.

1. Images: the sampler yields keys (epoch, position in the epoch's global order, sample), and the dataset seeds from
   (seed, epoch, position) before its transforms run. The number of workers, the number of ranks and interruptions
   therefore change nothing.
2. Everything else (dropout, drop path, Mixup): the loop seeds at the start of every micro-batch from
   (seed, epoch, batch index, rank).
"""

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

_MASK = (1 << 64) - 1
_ORDER, _IMAGE, _STEP, _PREFETCH, _CONSTRUCTION = range(5)  # one stream for each kind of draw


def mix_seed(*numbers: int) -> int:
    """Mix integers into one 64-bit seed, by splitmix64's finalizer after each (Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def _seed_host(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed costs ten times as much: it visits every backend


def seed_step(seed: int, epoch: int, batch_index: int, rank: int, device: torch.device) -> None:
    """Seed the generators of Python, NumPy, torch's CPU and the device for one micro-batch."""
    _seed_host_and_device(mix_seed(seed, _STEP, epoch, batch_index, rank), device)


def seed_prefetch(seed: int, epoch: int, batch_index: int, rank: int, device: torch.device) -> None:
    """Seed the same generators for the draws of a prefetched micro-batch, which may run one step before its use."""
    _seed_host_and_device(mix_seed(seed, _PREFETCH, epoch, batch_index, rank), device)


def _seed_host_and_device(seed: int, device: torch.device) -> None:
    _seed_host(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def seeded_construction(seed: int) -> Iterator[None]:
    """Draw from the run's seed on the host, before the run, and restore the global random states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed_host(mix_seed(seed, _CONSTRUCTION))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_streamed_image(seed: int, epoch: int, rank: int, worker: int, position: int) -> None:
    """Seed the host for an image of a stream; `position` counts the images of this worker of this rank."""
    _seed_host(mix_seed(seed, _IMAGE, epoch, rank, worker, position))


class SampleKey(NamedTuple):
    """The key of a sample: the epoch, its position in the epoch's global order, and its index in the dataset."""

    epoch: int
    position: int
    sample: int


class KeyedSampler(Sampler[SampleKey]):
    """Yield a `SampleKey` for each index of another sampler, in an order that depends only on (seed, epoch).

    Args:
        sampler: Any sampler. Each epoch replaces its ``generator`` and calls its ``set_epoch``.
        seed: The run's seed.
        fixed_epoch: The epoch to use in evaluation, where `set_epoch` has no effect.
    """

    def __init__(self, sampler: Sampler[int], seed: int, fixed_epoch: int | None = None) -> None:
        self.sampler, self.seed, self.fixed_epoch = sampler, seed, fixed_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order and draws the next iteration uses."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch if self.fixed_epoch is None else self.fixed_epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        seed = mix_seed(self.seed, _ORDER, epoch)
        seed_order(self.seed, epoch)  # for samplers that draw from the global state
        if hasattr(self.sampler, "generator"):
            self.sampler.generator = torch.Generator()
            self.sampler.generator.manual_seed(seed)
        for position, index in enumerate(self.sampler):
            yield SampleKey(epoch, position, index)

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        return len(self.sampler)


class SeededDataset(Dataset):
    """Wrap a dataset: the sample at a `SampleKey` depends only on (seed, epoch, position).

    The sample comes before the dataset's ``device_transform``, which the loop applies to the prefetched batch. A plain
    index returns the dataset's sample, unseeded and complete. Other attributes are those of the wrapped dataset.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: SampleKey | int) -> Any:
        if not isinstance(key, SampleKey):
            return self.dataset[key]
        _seed_host(mix_seed(self.seed, _IMAGE, key.epoch, key.position))
        if getattr(self.dataset, "device_transform", None) is None:
            return self.dataset[key.sample]
        return self.dataset.load(key.sample)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # neither protocols (`__getitems__`) nor a half-built copy
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededBatches(SeededDataset):
    """The same for a dataset that reads whole batches alone; a batch is drawn from the key of its first sample."""

    def __getitems__(self, keys: list[SampleKey]) -> Any:
        _seed_host(mix_seed(self.seed, _IMAGE, keys[0].epoch, keys[0].position))
        return self.dataset.__getitems__([key.sample for key in keys])


def seeded(dataset: Any, seed: int) -> Any:
    """Wrap a map-style dataset in `SeededDataset`, once; an iterable dataset is returned as it is."""
    if isinstance(dataset, SeededDataset):
        dataset = dataset.dataset
    if dataset is None or isinstance(dataset, IterableDataset):
        return dataset
    reads_samples = getattr(type(dataset), "__getitem__", Dataset.__getitem__) is not Dataset.__getitem__
    reads_batches = hasattr(dataset, "__getitems__") and not reads_samples
    return (SeededBatches if reads_batches else SeededDataset)(dataset, seed)


def seeded_dataset_of(loader: Any) -> SeededDataset | None:
    """Return the `SeededDataset` that a loader reads, also inside other wrappers; None where there is none."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and not isinstance(dataset, SeededDataset):
        dataset = getattr(dataset, "dataset", None)
    return dataset


def key_samples(loader: Any, seed: int, fixed_epoch: int | None = None) -> None:
    """Make a `DataLoader` over a map-style dataset index a `SeededDataset` by keys, with any sampler.

    The dataset itself does not change. A batch sampler without a ``sampler`` is not changed: torch then seeds the
    transforms, and the draws depend on the number of workers.
    """
    batch_sampler: Any = getattr(loader, "batch_sampler", None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    sampler = getattr(batch_sampler, "sampler", None)
    if isinstance(sampler, KeyedSampler):  # the loader of an earlier run
        sampler = sampler.sampler
    elif sampler is None or seeded_dataset_of(loader) is not None:
        return
    batch_sampler.sampler = KeyedSampler(sampler, seed, fixed_epoch)
    vars(loader)["dataset"] = seeded(loader.dataset, seed)  # torch's own assignment refuses


def seed_order(seed: int, epoch: int) -> None:
    """Seed the host before an epoch's loader starts, for a loader that draws its order from the global generators."""
    _seed_host(mix_seed(seed, _ORDER, epoch))

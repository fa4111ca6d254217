"""What the loop asks of a loader: an epoch's number, the batches that are left, and a stream's share."""

import warnings
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader

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

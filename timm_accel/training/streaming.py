"""Streams in a run: they share themselves out among processes and workers, and draw from the run's seed."""

import warnings
from functools import partial
from typing import Any

from accelerate import Accelerator

from timm_accel.data.streams import StreamedImages
from timm_accel.training.randomness import seed_streamed_image


def is_stream(loader: Any) -> bool:
    """Whether a loader, or None, is over `StreamedImages`."""
    return isinstance(getattr(loader, "dataset", None), StreamedImages)


def share_stream(loader: Any, accelerator: Accelerator, seed: int) -> None:
    """Tell the stream of a loader, before that starts, its part and its seed; leave other data sets alone.

    Args:
        loader: Any loader, or None.
        accelerator: It knows the processes.
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
            "epoch up to whole batches, and a resumed run is exact only with the same number of workers and processes.",
            stacklevel=2,
        )

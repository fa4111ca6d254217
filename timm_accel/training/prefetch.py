"""Prefetch: batches are finished on the device, on a GPU one step ahead of their use."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate.utils import recursively_apply, send_to_device


def prefetch(batches: Iterable[Any], transform_fn: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    """Yield each batch as `transform_fn` returns it.

    On a CUDA device the next batch is copied and transformed in a stream of its own, while the current one is used.

    Args:
        batches: What accelerate's loader gives, which copies a batch to the device when it is asked for it, or any
            other iterable, which does not.
        transform_fn: Called with each batch, in order.
        device: Where the batches are used.

    Source: ``timm.data.loader.PrefetchLoader``.
    """
    if device.type == "cpu":
        return map(transform_fn, batches)
    moved = (send_to_device(batch, device, non_blocking=device.type == "cuda") for batch in batches)
    return _ahead(moved, transform_fn, device) if device.type == "cuda" else map(transform_fn, moved)


def _ahead(batches: Iterable[Any], transform_fn: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    side, iterator, end = torch.cuda.Stream(device), iter(batches), object()

    def pull() -> Any:
        with torch.cuda.stream(side):
            batch = next(iterator, end)
            return batch if batch is end else transform_fn(batch)

    following = pull()
    while following is not end:
        using = torch.cuda.current_stream(device)
        using.wait_stream(side)
        batch = following
        recursively_apply(_used_in, batch, using)
        following = pull()
        yield batch


def _used_in(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor

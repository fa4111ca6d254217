"""Prefetch: batches are transformed on the device, on a GPU one step before they are used."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate.utils import recursively_apply, send_to_device


def prefetch(batches: Iterable[Any], transform_fn: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    """Yield each batch as `transform_fn` returns it.

    On a CUDA device the next batch is copied and transformed in a separate stream, while the current one is used.

    Args:
        batches: accelerate's loader, which copies a batch to the device when it is asked for one, or any other
            iterable, which does not copy.
        transform_fn: Called with each batch, in order.
        device: Where the batches are used.

    Source: ``timm.data.loader.PrefetchLoader``.
    """
    if device.type == "cpu":
        return map(transform_fn, batches)
    moved = (send_to_device(batch, device, non_blocking=device.type == "cuda") for batch in batches)
    return _one_step_ahead(moved, transform_fn, device) if device.type == "cuda" else map(transform_fn, moved)


def _one_step_ahead(batches: Iterable[Any], transform_fn: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
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
        recursively_apply(_record_stream, batch, using)
        following = pull()
        yield batch


def _record_stream(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor

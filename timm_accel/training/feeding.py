"""Feeding: a loader's batches made ready on the device, on a GPU one step ahead of their use."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate.utils import recursively_apply, send_to_device


def feed(batches: Iterable[Any], make_ready: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    """Yield each batch as `make_ready` returns it.

    On a CUDA device the next batch is copied and made ready in a stream of its own, while the present one is used.

    Args:
        batches: What accelerate's loader gives, which copies a batch to the device when it is asked for it, or any
            other iterable, which does not.
        make_ready: Called with each batch, in order.
        device: Where the batches are used.

    Source: ``timm.data.loader.PrefetchLoader``.
    """
    if device.type == "cpu":
        return map(make_ready, batches)
    moved = (send_to_device(batch, device, non_blocking=device.type == "cuda") for batch in batches)
    return _ahead(moved, make_ready, device) if device.type == "cuda" else map(make_ready, moved)


def _ahead(batches: Iterable[Any], make_ready: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    side, iterator, end = torch.cuda.Stream(device), iter(batches), object()

    def pull() -> Any:
        with torch.cuda.stream(side):
            batch = next(iterator, end)
            return batch if batch is end else make_ready(batch)

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

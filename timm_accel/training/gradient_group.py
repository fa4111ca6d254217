"""The micro-batches of one update: their gradients add up to the mean over all of its images."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import nn

from timm_accel.training.loaders import count_batches

T = TypeVar("T")


class GradientGroup:
    """Weights each micro-batch of an update by its images.

    Every micro-batch is first weighted relative to a full one of the group that the loader's length promises, so that
    groups of full micro-batches need no more. What the group turns out to hold is corrected once, before clipping.

    Args:
        loader: The training loader.
        accumulation: Micro-batches of a full group.
        num_processes: The ranks, over which DDP averages the gradients.
        sum_over_ranks: Adds up an integer over all ranks. Collective.
    """

    def __init__(
        self, loader: Any, accumulation: int, num_processes: int, sum_over_ranks: Callable[[int], int]
    ) -> None:
        sampler = getattr(loader, "batch_sampler", None)
        self.batch_size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        self.drops_last = bool(getattr(loader, "drop_last", False) or getattr(sampler, "drop_last", False))
        self.num_batches, self.accumulation = count_batches(loader), accumulation
        self.num_processes, self.sum_over_ranks = num_processes, sum_over_ranks
        self.is_last = False
        self._images = self._reference = self._expected = 0

    @property
    def looks_ahead(self) -> bool:
        """Whether the last batch of an epoch must be known as such before it is used."""
        return self.accumulation > 1 or self.num_processes > 1

    def divisor(self, index: int, images: int) -> float:
        """Return what the loss of a micro-batch is divided by.

        Args:
            index: The number of the micro-batch in the epoch, from 0.
            images: Its images.
        """
        if self._images == 0:
            tail = self.num_batches % self.accumulation
            self._expected = tail if self.num_batches - tail <= index < self.num_batches else self.accumulation
            self._reference = images if self.num_processes == 1 else self.batch_size or 1  # the same on all ranks
        self._images += images
        return self._expected if images in (0, self._reference) else self._expected * self._reference / images

    def correction(self) -> float:
        """Return what the gradients of the group are multiplied by, and begin the next group."""
        images, self._images = self._images, 0
        total = self.sum_over_ranks(images) if self._may_differ() else images * self.num_processes
        expected = self._expected * self._reference * self.num_processes
        return 1.0 if total in (0, expected) else expected / total

    def _may_differ(self) -> bool:
        """Whether ranks may have different numbers of images in this update; all ranks give the same answer."""
        return self.num_processes > 1 and (self.batch_size is None or (self.is_last and not self.drops_last))


@torch.no_grad()
def multiply_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply the gradients of the parameters, each once; those with a graph keep it."""
    for each in dict.fromkeys(parameters):
        if each.grad is not None and each.grad.requires_grad:  # of a second-order optimizer
            with torch.enable_grad():
                each.grad = each.grad * factor
        elif each.grad is not None:
            each.grad.mul_(factor)


def with_last(items: Iterator[T], looks_ahead: bool) -> Iterator[tuple[T, bool]]:
    """Yield each item, and whether it is the last; without a look ahead none is."""
    if not looks_ahead:
        for item in items:
            yield item, False
        return
    end: Any = object()
    item = next(items, end)
    while item is not end:
        following = next(items, end)
        yield item, following is end
        item = following


def zero_grad(optimizer: Any) -> None:
    """Set the gradients to None; to zeros for an optimizer that does not know the option, as accelerate does."""
    kind: Any = type(optimizer)
    if _knows_set_to_none(kind):
        optimizer.zero_grad(set_to_none=True)
    else:
        optimizer.zero_grad()


@cache
def _knows_set_to_none(kind: Any) -> bool:
    """Whether ``zero_grad`` has this option; accelerate 1.15 reads its signature in each update."""
    return "set_to_none" in signature(kind.zero_grad).parameters

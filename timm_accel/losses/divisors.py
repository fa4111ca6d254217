"""What the mean of a loss divides by, noted while the loss is computed.

Most means divide by the number of images. Cross-entropy's divides by the weights of the labels that are not ignored, so
the mean over several batches is that of one batch only if each batch counts by what it was divided by.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_WEIGHTED_MEANS = (functional.cross_entropy, functional.nll_loss)


class Divisors(TorchFunctionMode):
    """Notes what each weighted mean divides by, on the device, wherever a watched loss computes one.

    It sees torch's cross-entropy and negative log-likelihood, as modules, as functions, and within a custom loss.

    Attributes:
        sums: Whether a watched loss adds up its batch (``reduction="sum"``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums = False
        self._noted: list[tuple[int, torch.Tensor]] = []

    @contextmanager
    def watching(self, owner: Any, *names: str, objects: bool = True) -> Iterator[None]:
        """Watch the losses that `owner` has under these names; modules get hooks, and all others are wrapped.

        Args:
            owner: What has the losses as attributes.
            *names: The names of the attributes.
            objects: Whether objects that are neither modules nor functions are wrapped; it hides their attributes.
        """
        losses = {name: loss for name in names if callable(loss := vars(owner).get(name))}
        if not objects:
            losses = {
                name: loss for name, loss in losses.items() if isinstance(loss, nn.Module | partial | FunctionType)
            }
        with ExitStack() as stack:
            for name, loss in losses.items():
                if not isinstance(loss, nn.Module):
                    setattr(owner, name, self._watched(loss))
                    stack.callback(setattr, owner, name, loss)
            for loss in dict.fromkeys(loss for loss in losses.values() if isinstance(loss, nn.Module)):
                stack.callback(loss.register_forward_pre_hook(self._begin).remove)
                stack.callback(loss.register_forward_hook(self._end, always_call=True).remove)
            yield

    def _begin(self, loss: nn.Module, inputs: Any) -> None:
        self.sums = self.sums or getattr(loss, "reduction", None) == "sum"
        self.__enter__()

    def _end(self, loss: nn.Module, inputs: Any, output: Any) -> None:
        self.__exit__(None, None, None)

    def _watched(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(loss, updated=())
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self:
                return loss(*args, **kwargs)

        return watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _WEIGHTED_MEANS:
            self._note(*args, **kwargs)
        return func(*args, **kwargs)

    def _note(
        self,
        input: Any,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
        size_average: Any = None,
        ignore_index: int = -100,
        reduce: Any = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        """Take the arguments of torch's functions, which both have in this order."""
        if reduction == "sum":
            self.sums = True
        if reduction != "mean" or target.is_floating_point() or target.ndim == 0:  # probabilities: a mean over images
            return
        kept = target != ignore_index
        divisor = kept.sum() if weight is None else (weight[target.where(kept, 0)] * kept).sum()
        self._noted.append((len(target), divisor))

    def take(self, batch_size: int) -> torch.Tensor | None:
        """Return what the loss of a batch was divided by, and forget it; None: by the number of its images.

        The first mean over the whole batch decides: model and EMA model have the same targets.
        """
        noted, self._noted = self._noted, []
        return next((divisor for length, divisor in noted if length == batch_size), None)

"""Labels that a loss ignores, and labels that are out of range."""

from functools import partial
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from torch.nn import functional

IGNORED = -100  # torch's default
_FUNCTIONS = (functional.cross_entropy, functional.nll_loss)
_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)


def ignored_label(loss: Any) -> int | None:
    """Return the label that a loss ignores: its ``ignore_index``, or -100 for a custom loss that does not tell.

    None for timm's losses, which ignore no label.
    """
    loss = _unwrapped(loss)
    if isinstance(loss, partial):
        return loss.keywords.get("ignore_index", ignored_label(loss.func))
    for part in loss.modules() if isinstance(loss, nn.Module) else [loss]:
        if isinstance(index := getattr(part, "ignore_index", None), int):
            return index
    return IGNORED if loss in _FUNCTIONS or not takes_classes(loss) else None


def takes_classes(loss: Any) -> bool:
    """Whether a loss is one of torch's or timm's that fail on a label that is no class."""
    loss = _unwrapped(loss)
    if isinstance(loss, partial):
        return takes_classes(loss.func)
    return loss in _FUNCTIONS or type(loss) in _MODULES or type(loss).__module__.startswith("timm.loss")


def _unwrapped(loss: Any) -> Any:
    return loss if isinstance(loss, nn.Module) else unwrap(loss)


class LabelCheck:
    """Finds labels out of range: on the CPU at once, on another device without waiting for it.

    Args:
        num_classes: The number of classes.
        device: Where the labels are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self._found = None if device.type == "cpu" else torch.zeros(4, dtype=torch.int64, device=device)

    def __call__(self, labels: torch.Tensor, ignored: int | None, batch: int) -> torch.Tensor:
        """Return the labels; on another device than the CPU those out of range are replaced by 0, and noted.

        torch's losses would end the process there with an assertion of a kernel.

        Args:
            labels: ``(B,)``.
            ignored: The label that is ignored.
            batch: The number of the batch, from 0.

        Raises:
            ValueError: On the CPU, a label is out of range.
        """
        wrong = (labels < 0) | (labels >= self.num_classes)
        if ignored is not None:
            wrong &= labels != ignored
        if self._found is None:
            if wrong.numpy().any():  # no read that waits, as item() on a device
                index = int(wrong.numpy().argmax())
                raise ValueError(self._message(int(labels.numpy()[index]), index, batch))
            return labels
        place = wrong.long().argmax()
        label = labels.gather(0, place[None])[0].long()  # labels[place] would wait for the device
        first = torch.stack([wrong.any().long(), label, place, torch.full_like(place, batch)])
        self._found = torch.where(self._found[0] > 0, self._found, first)
        return labels.where(~wrong, 0)

    @property
    def noted(self) -> torch.Tensor | None:
        """What `fault` reads, on the device; None on the CPU, where nothing is noted."""
        return self._found

    def fault(self, noted: torch.Tensor | None = None) -> str | None:
        """Return the sentence about the first label out of range, or None.

        Args:
            noted: A copy of `noted`; None reads it from the device, and waits for it.
        """
        noted = self._found if noted is None else noted
        if noted is None:
            return None
        found, label, index, batch = noted.tolist()
        return self._message(label, index, batch) if found else None

    def _message(self, label: int, index: int, batch: int) -> str:
        return (
            f"Expected labels to be from 0 to {self.num_classes - 1}, or the ignore_index of the loss, but got {label} "
            f"for image {index} of batch {batch} (both from 0). Correct it, or give the loss ignore_index={label}."
        )

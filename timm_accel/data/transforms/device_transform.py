"""On-device normalization and random erasing: from batches of ``uint8`` images to the model's input."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing

from timm_accel.data.transforms.data_config import check_mean_and_std

ERASING_MODES = ("const", "rand", "pixel")


class DeviceTransform:
    """Normalize ``uint8`` images on their device, and erase parts of them at random.

    So loader workers transfer a quarter of the bytes, and the device does the arithmetic. Other types are not changed.

    Args:
        mean: The mean of each channel, on a scale from 0 to 1.
        std: The standard deviation of each channel, on the same scale.
        re_prob: The probability of random erasing.
        re_mode: What fills an erased part: ``const`` (0), ``rand`` (a random color), ``pixel`` (random pixels).
        re_count: The largest number of erased parts in an image.

    Raises:
        ValueError: An option is out of range.

    Source: Random erasing, arXiv 1708.04896; ``timm.data.random_erasing``; ``timm.data.loader.PrefetchLoader``.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        re_prob: float = 0.0,
        re_mode: str = "const",
        re_count: int = 1,
    ) -> None:
        if not (isinstance(re_prob, int | float) and 0 <= re_prob <= 1):
            raise ValueError(f"Expected re_prob to be between 0 and 1, but got {re_prob!r}. 0 erases nothing.")
        if re_mode not in ERASING_MODES:
            raise ValueError(
                f"Expected re_mode to be one of {', '.join(ERASING_MODES)}, but got {re_mode!r}. Choose one of them."
            )
        if not (isinstance(re_count, int) and re_count >= 1):
            raise ValueError(f"Expected re_count to be at least 1, but got {re_count!r}. The default is 1.")
        self.mean, self.std = check_mean_and_std(mean, std)
        self.re_prob, self.re_mode, self.re_count = re_prob, re_mode, re_count

    @property
    def is_random(self) -> bool:
        """Whether the transform draws random numbers."""
        return self.re_prob > 0

    def __call__(self, images: Any) -> Any:
        """Return images ``(B, C, H, W)`` or ``(C, H, W)`` as float32."""
        if not (isinstance(images, torch.Tensor) and images.dtype == torch.uint8):
            return images
        mean, std = _constant(self.mean, images.device), _constant(self.std, images.device)
        images = images.to(torch.float32).sub_(mean).div_(std)
        if self.is_random:
            erase = RandomErasing(self.re_prob, mode=self.re_mode, max_count=self.re_count, device=images.device)
            images = erase(images)
        return images

    def __repr__(self) -> str:
        erasing = f", re_prob={self.re_prob}, re_mode={self.re_mode!r}, re_count={self.re_count}"
        return f"{type(self).__name__}(mean={self.mean}, std={self.std}{erasing if self.is_random else ''})"


@lru_cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return the channels' values on a scale from 0 to 255; cached, since a copy to a GPU waits for the GPU."""
    return torch.tensor(values, device=device).mul_(255).view(-1, 1, 1)

"""Gradient clipping by norm, by value, or adaptively."""

from typing import Any

from timm.models import model_parameters
from timm.utils import dispatch_clip_grad

from timm_accel.messages import nearest
from timm_accel.training import LoopTrainer

CLIP_MODES = ("norm", "value", "agc")


class GradientClippingMixin(LoopTrainer):
    """Clip the gradients once for each update, after they were accumulated, reduced over ranks and unscaled.

    Args:
        clip_grad: The largest global norm (``norm``), the largest absolute value (``value``), or the factor of each
            unit's parameter norm (``agc``, without the head). None turns clipping off.
        clip_mode: ``norm``, ``value`` or ``agc``.

    Raises:
        ValueError: `clip_mode` is unknown, or `clip_grad` not positive; or, in `train`, ``gradient_clip_value`` was
            given too.

    Source: ``timm.utils.dispatch_clip_grad``; AGC: arXiv 2102.06171.
    """

    def __init__(self, *args: Any, clip_grad: float | None = None, clip_mode: str = "norm", **kwargs: Any) -> None:
        if clip_mode not in CLIP_MODES:
            raise ValueError(
                f"Expected clip_mode to be one of {', '.join(CLIP_MODES)}, but got {clip_mode!r}. "
                f"{nearest(clip_mode, CLIP_MODES)}"
            )
        if clip_grad is not None and not (isinstance(clip_grad, int | float) and clip_grad > 0):
            raise ValueError(
                f"Expected clip_grad to be positive, but got {clip_grad!r}. Pass None to leave gradients as they are."
            )
        self.clip_grad, self.clip_mode = clip_grad, clip_mode
        super().__init__(*args, **kwargs)

    def training_run_start(self) -> None:
        value = self.run_config.gradient_clip_value
        if self.clip_grad is not None and value is not None:
            raise ValueError(
                f"Expected clip_grad or gradient_clip_value, since gradients are unscaled once, but got "
                f"{self.clip_grad!r} and {value!r}. Leave one of them out; clip_mode='value' does the same."
            )
        super().training_run_start()

    def clip_gradients(self) -> None:
        super().clip_gradients()
        if self.clip_grad is not None:
            self.current_run().accelerator.unscale_gradients()
            parameters = model_parameters(self.current_run().unwrapped_model, exclude_head=self.clip_mode == "agc")
            dispatch_clip_grad(parameters, self.clip_grad, mode=self.clip_mode)

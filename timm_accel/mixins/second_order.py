"""Optimizers that differentiate the gradients again."""

from typing import Any

from timm_accel.training import LoopTrainer


class SecondOrderMixin(LoopTrainer):
    """Keep the graph of the gradients for optimizers that ask for it (``is_second_order``), such as Adahessian.

    Raises:
        ValueError: In `train`, with such an optimizer on several processes: gradients of gradients are not
            synchronised by DDP.

    Source: ADAHESSIAN, arXiv 2006.00719; ``create_graph`` in timm's ``train.py``.
    """

    def _is_second_order(self) -> bool:
        return bool(getattr(self.unwrapped_optimizer, "is_second_order", False))

    def training_run_start(self) -> None:
        if self._is_second_order() and self.accelerator.num_processes > 1:
            raise ValueError(
                "Expected a first-order optimizer on several processes, since DDP does not synchronise gradients of "
                f"gradients, but got {type(self.unwrapped_optimizer).__name__}. Train on one process, or choose "
                "another optimizer."
            )
        super().training_run_start()

    def backward_kwargs(self) -> dict[str, Any]:
        kwargs = super().backward_kwargs()
        return kwargs | {"create_graph": True} if self._is_second_order() else kwargs

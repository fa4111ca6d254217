"""Second-order optimizers, which differentiate the gradients."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from timm_accel.training import LoopTrainer


class SecondOrderMixin(LoopTrainer):
    """Keep the graph of the gradients for optimizers that ask for it (``is_second_order``), such as Adahessian.

    Attention is computed by torch's plain operators then, since the fused ones have no second derivative (torch 2.14).

    States also hold what such an optimizer leaves out of its ``state_dict`` (timm 1.0.31): its random generators, and
    the traces of the Hessian that it keeps for later updates.

    Raises:
        ValueError: In `train`, with such an optimizer in distributed training: DDP does not synchronize gradients of
            gradients.

    Source: ADAHESSIAN, arXiv 2006.00719; ``create_graph`` in timm's ``train.py``.
    """

    def _is_second_order(self) -> bool:
        return bool(getattr(self.current_run().unwrapped_optimizer, "is_second_order", False))

    def training_run_start(self) -> None:
        if self._is_second_order() and self.current_run().accelerator.num_processes > 1:
            raise ValueError(
                "Expected a first-order optimizer in distributed training, since DDP does not synchronize gradients of "
                f"gradients, but got {type(self.current_run().unwrapped_optimizer).__name__}. Train on one process, or "
                "choose another optimizer."
            )
        if self._is_second_order():  # also where gradient checkpointing repeats a forward pass in the optimizer's step
            self.current_run().at_exit.enter_context(sdpa_kernel(SDPBackend.MATH))
        super().training_run_start()

    def backward_kwargs(self) -> dict[str, Any]:
        kwargs = super().backward_kwargs()
        return kwargs | {"create_graph": True} if self._is_second_order() else kwargs

    def components(self) -> dict[str, Any]:
        components = super().components()
        return (
            components | {"hessian": _Hessian(self.current_run().unwrapped_optimizer)}
            if self._is_second_order()
            else components
        )


class _Hessian:
    """The random generators of a second-order optimizer, and the traces (``hess``) of its parameters."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _generators(self) -> dict[str, torch.Generator]:
        return {name: value for name, value in vars(self.optimizer).items() if isinstance(value, torch.Generator)}

    def state_dict(self) -> dict[str, Any]:
        traces = [getattr(parameter, "hess", None) for parameter in self.parameters]
        kept = getattr(self.optimizer, "update_each", 1) > 1  # otherwise every update computes them
        return {
            "generators": {name: (value.device.type, value.get_state()) for name, value in self._generators().items()},
            "traces": [trace if kept and isinstance(trace, torch.Tensor) else None for trace in traces],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        device = self.parameters[0].device
        for name, (kind, state) in state_dict["generators"].items():
            if kind == device.type:  # another type of device draws other numbers anyway
                generator = torch.Generator(device)
                generator.set_state(state)
                setattr(self.optimizer, name, generator)
        for parameter, trace in zip(self.parameters, state_dict["traces"], strict=True):
            if trace is not None:
                parameter.hess = trace.to(parameter.device)

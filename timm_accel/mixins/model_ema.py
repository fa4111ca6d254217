"""EMA weights: an exponential moving average of the weights, which is evaluated beside the model."""

import warnings
from numbers import Integral
from typing import Any, Literal

import torch
from accelerate.utils import convert_to_fp32
from timm.utils import ModelEmaV3
from torch import nn

from timm_accel.data.seeding import mix_seed
from timm_accel.states.weights import EMA_MODEL, EMA_PROGRESS, metric_prefix
from timm_accel.training import LoopTrainer
from timm_accel.upstream import ModelEmaCallback, TrainerCallback


class _EmaProgress:
    """Whether the EMA weights were updated; their step is the number of optimizer updates."""

    def __init__(self, trainer: "ModelEmaMixin") -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {"updated": self.trainer._ema_updated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trainer._ema_updated = state_dict["updated"]


class ModelEmaMixin(LoopTrainer):
    """Update EMA weights after every optimizer update, and evaluate them in the same pass as the model.

    ``trainer.ema_model`` is timm's ``ModelEmaV3``; its module is evaluated from its first update on, and its metrics
    have the prefix ``ema_model_``. Each `train` starts a new EMA model, and `evaluate` keeps it.

    Args:
        ema_decay: The share of the EMA weights that an update keeps, from 0 to below 1.
        ema_warmup: Whether the decay rises to `ema_decay` with the number of updates.
        ema_update_every: Optimizer updates between two updates of the EMA weights, or ``"epoch"`` for one at the end of
            each epoch.
        ema_device: The device of the EMA model; None for that of the model. An EMA model on the CPU is not evaluated
            during training on a GPU.

    Raises:
        ValueError: An option is out of range.

    Source: ``timm.utils.ModelEmaV3``.
    """

    ema_model: ModelEmaV3 | None = None

    def __init__(
        self,
        *args: Any,
        ema_decay: float = 0.9998,
        ema_warmup: bool = True,
        ema_update_every: int | Literal["epoch"] = 1,
        ema_device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        if not (isinstance(ema_decay, int | float) and 0 <= ema_decay < 1):
            raise ValueError(
                f"Expected ema_decay to be from 0 to below 1, but got {ema_decay!r}. Usual values are 0.99 to 0.9999."
            )
        if ema_update_every != "epoch" and not (isinstance(ema_update_every, int | Integral) and ema_update_every >= 1):
            raise ValueError(
                f"Expected ema_update_every to be a number of updates of at least 1, or 'epoch', but got "
                f"{ema_update_every!r}. The default is 1."
            )
        self.ema_decay, self.ema_warmup, self.ema_update_every = ema_decay, ema_warmup, ema_update_every
        self.ema_device = None if ema_device is None else torch.device(ema_device)
        self._ema_updated = False
        super().__init__(*args, **kwargs)

    def refused_callbacks(self) -> dict[type[TrainerCallback], tuple[str, str]]:
        return super().refused_callbacks() | {ModelEmaCallback: ("this trainer has EMA weights already", "Remove it.")}

    def before_prepare(self) -> None:
        if self.ema_model is None or self.current_run().train_dataloader is not None:  # a run starts a new EMA model
            device = self.ema_device or self.device
            self.ema_model = ModelEmaV3(
                self.current_run().unwrapped_model, decay=self.ema_decay, use_warmup=self.ema_warmup, device=device
            )
            self.ema_model.foreach = self._is_evaluated()  # the model itself moves to its device only now
            self._ema_updated = False
        super().before_prepare()

    def training_run_start(self) -> None:
        super().training_run_start()
        assert self.ema_model is not None
        self.ema_model.set(self.current_run().unwrapped_model)  # DDP has given every rank the weights of rank 0
        self._warn_of_long_window(self.ema_model)
        if not self._is_evaluated():
            warnings.warn(
                f"The EMA model is on {self.ema_device} and the model on {self.device}, so the EMA model is not "
                "evaluated in training. Leave out ema_device to evaluate it.",
                stacklevel=2,
            )

    def _warn_of_long_window(self, ema_model: ModelEmaV3) -> None:
        total = self.run_config.max_num_train_steps
        every = self.current_run().updates_per_epoch if self.ema_update_every == "epoch" else int(self.ema_update_every)
        decay = ema_model.get_decay(total)
        if every / (1 - decay) > total / 3:
            warnings.warn(
                f"ema_decay={self.ema_decay} averages over about {every / (1 - decay):.0f} of the run's {total} "
                "updates, so the EMA weights lag behind the model. "
                f"Try ema_decay={max(0.0, 1 - 5 * every / total):.4g}.",
                stacklevel=2,
            )

    def after_update(self) -> None:
        super().after_update()
        if self.ema_update_every != "epoch" and self.current_run().num_updates % int(self.ema_update_every) == 0:
            self._update_ema()

    def train_epoch_end(self) -> None:
        super().train_epoch_end()
        if self.ema_update_every == "epoch":
            self._update_ema()

    def _update_ema(self) -> None:
        assert self.ema_model is not None
        # bfloat16 EMA weights are rounded at random; no state holds the generator (timm 1.0.31)
        self.ema_model._sr_generator.manual_seed(mix_seed(self.seed, self.current_run().num_updates))
        self.ema_model.update(self.current_run().unwrapped_model, step=self.current_run().num_updates)
        self._ema_updated = True

    def components(self) -> dict[str, Any]:
        components = super().components()
        if self.ema_model is None:
            return components
        return components | {EMA_MODEL: self.ema_model, EMA_PROGRESS: _EmaProgress(self)}

    def evaluated_models(self) -> dict[str, nn.Module]:
        weights = super().evaluated_models()
        if self.ema_model is not None and self._ema_updated:
            weights |= {EMA_MODEL: self.ema_model.module}
        return weights

    def _is_evaluated(self) -> bool:
        """Whether the EMA model is on the device of the model."""
        device = self.ema_device or self.device
        return device.type == self.device.type and device.index in (None, self.device.index)

    def metric_prefixes(self) -> list[str]:
        prefixes = super().metric_prefixes()
        return [*prefixes, metric_prefix(EMA_MODEL)] if self._is_evaluated() else prefixes

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        batch_output = super().calculate_eval_batch_loss(batch)
        if self.ema_model is not None and self._ema_updated and self._is_evaluated():
            inputs, targets = self.unpack_batch(batch)
            with torch.no_grad():
                with self.current_run().accelerator.autocast():
                    outputs = self.ema_model.module(inputs)
                outputs = convert_to_fp32(outputs)
                loss = self.evaluation_loss(self.logits_of(outputs), targets)
            batch_output.setdefault("ema_model_outputs", outputs)
            batch_output.setdefault("ema_model_loss", loss)
        return batch_output

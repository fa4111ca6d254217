"""EMA weights: an exponential moving average of the weights, which is evaluated beside the model."""

import warnings
from numbers import Integral
from typing import Any, Literal

import torch
from timm.utils import ModelEmaV3
from torch import nn

from timm_accel.callbacks import PrintSetupCallback
from timm_accel.data.seeding import mix_seed
from timm_accel.messages import counted
from timm_accel.models import EmaUpdate, choose_ema_decay
from timm_accel.models.ema import MAX_EMA_DECAY, share_frozen, unshare_frozen
from timm_accel.states.weights import EMA_MODEL, EMA_PROGRESS, metric_prefix
from timm_accel.training import LoopTrainer
from timm_accel.upstream import ModelEmaCallback, TrainerCallback


class _EmaProgress:
    """Whether the EMA weights were updated, and their decay; their step is the number of optimizer updates."""

    def __init__(self, trainer: "ModelEmaMixin", ema_model: ModelEmaV3) -> None:
        self.trainer, self.ema_model = trainer, ema_model

    def state_dict(self) -> dict[str, Any]:
        run = self.trainer.current_run()
        if fault := self.trainer._find_ema_fault(run.epoch, run.num_updates):
            raise ArithmeticError(fault)
        return {"updated": self.trainer._ema_updated, "decay": self.ema_model.decay}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trainer._ema_updated = state_dict["updated"]
        if self.trainer.ema_decay is None:
            self.ema_model.decay = state_dict.get("decay", MAX_EMA_DECAY)  # the default of states without one


class ModelEmaMixin(LoopTrainer):
    """Update EMA weights after every optimizer update, and evaluate them in the same pass as the model.

    ``trainer.ema_model`` is timm's ``ModelEmaV3``; its module is evaluated from its first update on, and its metrics
    have the prefix ``ema_model_``. Each `train` starts a new EMA model, and `evaluate` keeps it.

    The update is timm's, except that a tensor with several names moves once, and that values which are not finite are
    copied. Frozen parameters take memory once, for model and EMA model. EMA weights that are not finite where the
    model's are end the run with an error at the next sync point, on a GPU one sync point later.

    Args:
        ema_decay: The share of the EMA weights that an update keeps, from 0 to below 1. None chooses it by the length
            of the run: at most 0.9998, so that the EMA weights average over at most a fifth of the updates. A resumed
            run keeps what was chosen.
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
        ema_decay: float | None = None,
        ema_warmup: bool = True,
        ema_update_every: int | Literal["epoch"] = 1,
        ema_device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        if not (ema_decay is None or (isinstance(ema_decay, int | float) and 0 <= ema_decay < 1)):
            raise ValueError(
                f"Expected ema_decay to be from 0 to below 1, but got {ema_decay!r}. Usual values are 0.99 to 0.9999; "
                "None follows the length of the run."
            )
        if ema_update_every != "epoch" and not (isinstance(ema_update_every, int | Integral) and ema_update_every >= 1):
            raise ValueError(
                f"Expected ema_update_every to be a number of updates of at least 1, or 'epoch', but got "
                f"{ema_update_every!r}. The default is 1."
            )
        self.ema_decay, self.ema_warmup, self.ema_update_every = ema_decay, ema_warmup, ema_update_every
        self.ema_device = None if ema_device is None else torch.device(ema_device)
        self._ema_updated = self._ema_decay_logged = False
        self._ema_update: EmaUpdate | None = None
        self._ema_num_updates = 0  # of the optimizer, at the last update of the EMA weights
        super().__init__(*args, **kwargs)

    def refused_callbacks(self) -> dict[type[TrainerCallback], tuple[str, str]]:
        return super().refused_callbacks() | {ModelEmaCallback: ("this trainer has EMA weights already", "Remove it.")}

    def before_prepare(self) -> None:
        if self.ema_model is None or self.current_run().train_dataloader is not None:  # a run starts a new EMA model
            device = self.ema_device or self.device
            decay = MAX_EMA_DECAY if self.ema_decay is None else self.ema_decay  # the length is not known yet
            model = self.current_run().unwrapped_model
            self.ema_model = ModelEmaV3(model, decay=decay, use_warmup=self.ema_warmup, device=device)
            self.ema_model.foreach = self._is_evaluated()  # the model itself moves to its device only now
            self._ema_updated = self._ema_decay_logged = False
            self._ema_update = None
        super().before_prepare()

    def training_run_start(self) -> None:
        super().training_run_start()
        assert self.ema_model is not None
        model = self.current_run().unwrapped_model
        self.ema_model.set(model)  # DDP has given every rank the weights of rank 0
        share_frozen(self.ema_model, model, self.current_run().unwrapped_optimizer)
        if self.ema_decay is None:
            self.ema_model.decay = choose_ema_decay(self.run_config.max_num_train_steps, self._updates_between())
        else:
            self._warn_of_long_window(self.ema_model)
        if not self._is_evaluated():
            warnings.warn(
                f"The EMA model is on {self.ema_device} and the model on {self.device}, so the EMA model is not "
                "evaluated in training. Leave out ema_device to evaluate it.",
                stacklevel=2,
            )

    def _updates_between(self) -> int:
        """Return the optimizer updates between two updates of the EMA weights."""
        return self.current_run().updates_per_epoch if self.ema_update_every == "epoch" else int(self.ema_update_every)

    def _window(self, ema_model: ModelEmaV3) -> float:
        """Return the optimizer updates over which the EMA weights average at the end of the run."""
        return self._updates_between() / (1 - ema_model.get_decay(self.run_config.max_num_train_steps))

    def _warn_of_long_window(self, ema_model: ModelEmaV3) -> None:
        total, window = self.run_config.max_num_train_steps, self._window(ema_model)
        advised = choose_ema_decay(total, self._updates_between())
        if window > total / 3 and advised < ema_model.decay:
            warnings.warn(
                f"ema_decay={self.ema_decay} averages over about {window:.0f} of the run's {total} updates, so the EMA "
                f"weights lag behind the model. Try ema_decay={advised:.4g}.",
                stacklevel=2,
            )

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        assert self.ema_model is not None
        if self.ema_decay is None and not self._ema_decay_logged:
            self._ema_decay_logged = True
            if self._is_on_screen():
                return
            self.print(
                f"ema_decay is {self.ema_model.decay:.4g}: at the end, the EMA weights average over about "
                f"{self._window(self.ema_model):.0f} of the run's {self.run_config.max_num_train_steps} updates."
            )

    def _is_on_screen(self) -> bool:
        """Return whether the screen before training told the decay; a resumed run may have another only after it."""
        assert self.ema_model is not None
        told = choose_ema_decay(self.run_config.max_num_train_steps, self._updates_between())
        return self.ema_model.decay == told and any(
            isinstance(each, PrintSetupCallback) for each in self.callback_handler
        )

    def after_update(self) -> None:
        super().after_update()
        num_updates = self.current_run().num_updates
        if self.ema_update_every != "epoch" and num_updates % int(self.ema_update_every) == 0:
            self._update_ema()
        if num_updates % self.sync_every_n_updates == 0 and self._ema_update is not None:
            epoch = self.current_run().epoch

            def look(suspicion: torch.Tensor) -> None:
                if not suspicion.isfinite().all():
                    self._stop_on_ema_fault(epoch, num_updates)

            self.current_run().late_reads.begin(self._ema_update.suspicion(), look)

    def train_epoch_end(self) -> None:
        super().train_epoch_end()
        if self.ema_update_every == "epoch":
            self._update_ema()
        self._stop_on_ema_fault(self.current_run().epoch, self.current_run().num_updates)

    def training_run_end(self) -> None:
        assert self.ema_model is not None
        unshare_frozen(self.ema_model, self.current_run().unwrapped_model)
        self._ema_update = None
        super().training_run_end()

    def _update_ema(self) -> None:
        assert self.ema_model is not None
        model, num_updates = self.current_run().unwrapped_model, self.current_run().num_updates
        if self._ema_update is None or self._ema_update.model is not model:
            self._ema_update = EmaUpdate(self.ema_model, model)
        # bfloat16 EMA weights are rounded at random; no state holds the generator (timm 1.0.31)
        self.ema_model._sr_generator.manual_seed(mix_seed(self.seed, num_updates))
        self._ema_update(num_updates)
        self._ema_updated, self._ema_num_updates = True, num_updates

    def _find_ema_fault(self, epoch: int | None, num_updates: int) -> str | None:
        """Return a sentence about EMA weights that are not finite where the model's are, or None.

        Args:
            epoch: The epoch in which it was seen, from 0; None outside one.
            num_updates: The optimizer updates after which it was seen.
        """
        if self._ema_update is None:
            return None
        name = self._ema_update.fault(model_moved=self.current_run().num_updates != self._ema_num_updates)
        where = "" if epoch is None else f" in epoch {epoch + 1}"
        return name and (
            f"Expected the EMA weights to be finite where the model's are, but {name} is not{where}, after "
            f"{counted(num_updates, 'update')}. Resume from the last state, and look for code that changes the EMA "
            "model."
        )

    def _stop_on_ema_fault(self, epoch: int | None, num_updates: int) -> None:
        if fault := self._find_ema_fault(epoch, num_updates):
            self.request_stop(fault, failed=True)

    def components(self) -> dict[str, Any]:
        components = super().components()
        if self.ema_model is None:
            return components
        return components | {EMA_MODEL: self.ema_model, EMA_PROGRESS: _EmaProgress(self, self.ema_model)}

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
            outputs, loss = self.evaluate_batch(self.ema_model.module, batch)
            batch_output.setdefault("ema_model_outputs", outputs)
            batch_output.setdefault("ema_model_loss", loss)
        return batch_output

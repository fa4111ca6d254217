"""Upstream's own ways of saving, with what the mixins add: one file, or a folder by accelerate."""

from pathlib import Path
from typing import Any

from torch import nn

from timm_accel.states.folder import plain
from timm_accel.training.resuming import ResumingTrainer


class CheckpointingTrainer(ResumingTrainer):
    """The part of `LoopTrainer` that keeps upstream's four methods at work; see there."""

    def get_model(self, keep_torch_compile: bool = True) -> nn.Module:
        # accelerate 1.15 strips DDP from the very model in training when a compiled one is unwrapped
        return super().get_model() if keep_torch_compile else self.unwrapped_model

    def save_checkpoint(
        self, save_path: str | Path, checkpoint_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().save_checkpoint(save_path, self._with_components(checkpoint_kwargs), **kwargs)

    def load_checkpoint(self, checkpoint_path: str | Path, **kwargs: Any) -> dict[str, Any]:
        return self._load_components(super().load_checkpoint(checkpoint_path, **kwargs))

    def save_training_state(self, output_dir: str | Path, checkpoint_kwargs: dict[str, Any] | None = None) -> None:
        self._forget_registered()
        super().save_training_state(output_dir, self._with_components(checkpoint_kwargs))

    def load_training_state(self, input_dir: str | Path) -> dict[str, Any]:
        self._forget_registered()
        return self._load_components(super().load_training_state(input_dir))

    def _forget_registered(self) -> None:
        """Upstream registers the scheduler at every call, so that the second state cannot be loaded (0.1.61)."""
        others = [each for each in self._accelerator._custom_objects if each is not self.scheduler]
        self._accelerator._custom_objects[:] = others

    def _with_components(self, given: dict[str, Any] | None) -> dict[str, Any]:
        states = {name: plain(part.state_dict(), f"components()[{name!r}]") for name, part in self.components().items()}
        return {**(given or {}), "components": states}

    def _load_components(self, saved: dict[str, Any]) -> dict[str, Any]:
        for name, component in self.components().items():
            if name in saved.get("components", {}):
                component.load_state_dict(saved["components"][name])
        return saved

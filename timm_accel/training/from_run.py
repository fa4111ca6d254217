"""Attributes of a trainer that its run holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm_accel.training.run import Run

if TYPE_CHECKING:
    from timm_accel.training.trainer import LoopTrainer


class FromRun:
    """An attribute that a trainer reads from its run, unless a subclass or the user has set one of that name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.__doc__ = name, getattr(getattr(Run, name, None), "__doc__", None)

    def __get__(self, trainer: LoopTrainer | None, owner: type | None = None) -> Any:
        return self if trainer is None else getattr(trainer.current_run(), self.name)

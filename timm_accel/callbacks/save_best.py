"""Save the best weights and the best EMA weights, each by the metric of these weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.optional_files import OptionalFile
from timm_accel.callbacks.recorded_metrics import is_better
from timm_accel.data.classes import class_names, is_multi_label
from timm_accel.models import CONFIG_FILE, remove_unfinished, save_classifier
from timm_accel.states.consensus import on_main_process
from timm_accel.states.run_dir import check_run_dir
from timm_accel.states.weights import BEST_FOLDERS, EMA_MODEL, metric_prefix

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class SaveBestCallback(Callback):
    """Save the best weights in ``best/``, and the best EMA weights in ``best_ema/``, as folders that timm can load.

    Each has its metric: with ``accuracy``, the metric of the EMA weights is ``ema_model_accuracy``. A tie keeps the
    earlier epoch; a value that is not finite is never the best, and an epoch without evaluation saves nothing.
    ``config.json`` holds the class names, the data config (that of the evaluation dataset, if it has one), and under
    ``best`` the metric, its value and the epoch (from 1). Where they cannot be written, this is reported, the older
    weights stay, and the run continues.

    Args:
        watch_metric: The metric to judge by.
        greater_is_better: Whether higher values are better.
        save_dir: Where to write the folders; None for the trainer's ``run_dir``.

    Raises:
        ValueError: The metric is that of the EMA weights; at the start, there is no folder, or the run does not record
            the metric.
        OSError: At the start, if the folder already holds best weights or cannot be written to.
    """

    FOLDERS: ClassVar = BEST_FOLDERS

    def __init__(
        self, watch_metric: str = "accuracy", greater_is_better: bool = True, save_dir: str | Path | None = None
    ) -> None:
        if watch_metric.startswith(ema := metric_prefix(EMA_MODEL)):
            raise ValueError(
                f"Expected watch_metric to be a metric of the model, since the EMA weights have the same with the "
                f"prefix {ema!r}, but got {watch_metric!r}. Pass {watch_metric.removeprefix(ema)!r}."
            )
        self.watch_metric, self.greater_is_better = watch_metric, greater_is_better
        self.save_dir = None if save_dir is None else Path(save_dir)
        self._root: Path | None = None
        self.best: dict[str, dict[str, Any]] = {}
        self._files = {name: OptionalFile() for name in self.FOLDERS}

    def on_init_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._root = self.save_dir or trainer.run_dir
        if self._root is None:
            raise ValueError(
                "Expected SaveBestCallback to have a folder, but got neither save_dir nor the trainer's run_dir. "
                "Pass run_dir to the trainer."
            )

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        assert self._root is not None
        self.best = {}
        trainer.check_metric("watch_metric", self.watch_metric)
        owns = all(trainer.belongs_to_run(self._folder(name)) for name in self.FOLDERS)
        check_run_dir(self._root, () if owns else self.FOLDERS.values(), argument="save_dir")
        if owns:
            self.best = on_main_process(trainer.current_run().accelerator, self._read_best)

    def _read_best(self) -> dict[str, dict[str, Any]]:
        """Return the best metrics as the folders hold them: a resumed run never replaces better weights."""
        found = {}
        for name in self.FOLDERS:
            remove_unfinished(self._folder(name))
            config, metric = self._folder(name) / CONFIG_FILE, metric_prefix(name) + self.watch_metric
            best = json.loads(config.read_text()).get("best") if config.is_file() else None
            if best is None:
                continue
            if best["metric"] != metric:
                raise ValueError(
                    f"Expected watch_metric to be that of the weights in {str(config.parent)!r}, {best['metric']!r}, "
                    f"but got {metric!r}. Watch the same metric, or move the folder away."
                )
            found[name] = best
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the best metrics, for information. A resumed run reads the folders, which may be newer."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the folders hold the best metrics."""

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().skips_evaluation:
            return
        trainer.latest_metric("watch_metric", self.watch_metric)
        for name in self.FOLDERS.keys() & trainer.evaluated_models().keys():
            metric = metric_prefix(name) + self.watch_metric
            if metric in trainer.run_history.get_metric_names():
                self._save_if_better(trainer, name, metric)

    def _save_if_better(self, trainer: "LoopTrainer", name: str, metric: str) -> None:
        value = trainer.latest_metric("watch_metric", metric)
        if is_better(value, self.best.get(name, {}).get("value"), self.greater_is_better):
            best = {"metric": metric, "value": value, "epoch": trainer.run_history.current_epoch}
            if not trainer.current_run().accelerator.is_main_process:
                return  # only the writer compares: it knows which weights were written
            with self._files[name].writing(trainer.print):
                save_classifier(
                    trainer.evaluated_models()[name],
                    self._folder(name),
                    class_names(trainer.train_dataset),
                    getattr(trainer.eval_dataset, "data_config", None),
                    best=best,
                    greater_is_better=self.greater_is_better,
                    **({"multi_label": True} if is_multi_label(trainer.train_dataset) else {}),
                )
                self.best[name] = best

    def on_training_run_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        for name, best in sorted(self.best.items(), reverse=True):
            trainer.print(
                f"Best {best['metric']} {best['value']:.4f} in epoch {best['epoch']}: weights in {self._folder(name)}"
            )

    def _folder(self, name: str) -> Path:
        assert self._root is not None
        return self._root / self.FOLDERS[name]

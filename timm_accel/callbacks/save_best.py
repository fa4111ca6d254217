"""Save the best weights and the best EMA weights, each by the metric of these weights."""

from copy import deepcopy
from functools import partial
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.optional_files import OptionalFile
from timm_accel.callbacks.recorded_metrics import is_better
from timm_accel.data.classes import class_names, is_multi_label
from timm_accel.distributed.consensus import on_main_process
from timm_accel.models import CONFIG_FILE, WEIGHTS_FILE, check_weights, read_config, remove_unfinished, save_classifier
from timm_accel.states.folder import whole_states
from timm_accel.states.run_dir import check_kind, check_run_dir
from timm_accel.states.saved_state import COMMON
from timm_accel.states.weights import BEST_FOLDERS, EMA_MODEL, metric_prefix, weights_of

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_NEXT = "A state of their epoch restores them; if there is none, the next evaluation saves the best weights again."


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
        self._outdated: dict[str, dict[str, Any]] = {}  # of other evaluation images, until new weights are saved
        self._files = {name: OptionalFile() for name in self.FOLDERS}
        self._lost: set[str] = set()
        self._saved: dict[str, dict[str, Any]] = {}  # the best metrics of the state

    def on_init_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        self._root = self.save_dir or trainer.run_dir
        if self._root is None:
            raise ValueError(
                "Expected SaveBestCallback to have a folder, but got neither save_dir nor the trainer's run_dir. "
                "Pass run_dir to the trainer."
            )

    def on_training_run_start(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        assert self._root is not None
        root, accelerator = self._root, trainer.current_run().accelerator
        self.best, self._lost, self._saved, self._outdated = {}, set(), {}, {}
        trainer.check_metric("watch_metric", self.watch_metric)
        owns = all(trainer.belongs_to_run(self.folder(name)) for name in self.FOLDERS)
        others = () if owns else self.FOLDERS.values()
        on_main_process(accelerator, lambda: check_run_dir(root, others, argument="save_dir"))
        if owns:
            self.best, lost = on_main_process(accelerator, self._read_best)
            self._report_lost(trainer, lost)
        if trainer.current_run().has_other_evaluation:
            for best in self.best.values():
                trainer.print(
                    f"Best {best['metric']} {best['value']:.4f} in epoch {best['epoch']} is of other evaluation images "
                    "and is not compared with new values: the next epoch replaces these weights."
                )
            self._forget(self.best)

    def _read_best(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Return the best metrics as the folders hold them, and what is wrong with folders whose weights are lost.

        A resumed run never replaces better weights, so the folders count, not the state.
        """
        found, lost = {}, {}
        for name in self.FOLDERS:
            folder, metric = self.folder(name), metric_prefix(name) + self.watch_metric
            remove_unfinished(folder)
            for path, kind in ((folder, "folder"), (folder / CONFIG_FILE, "file"), (folder / WEIGHTS_FILE, "file")):
                check_kind(path, kind)
            if not folder.exists():
                continue
            try:
                found[name] = _best_in(folder)
            except (ValueError, OSError) as error:
                lost[name] = str(error)
                continue
            if found[name]["metric"] != metric:
                raise ValueError(
                    f"Expected watch_metric to be that of the weights in {str(folder)!r}, {found[name]['metric']!r}, "
                    f"but got {metric!r}. Watch the same metric, or move the folder away."
                )
        return found, lost

    def _report_lost(self, trainer: "LoopTrainer", lost: dict[str, str]) -> None:
        self._lost |= lost.keys()
        for name in sorted(lost):
            trainer.print(f"{lost[name]} {_NEXT}")

    def _forget(self, outdated: dict[str, dict[str, Any]]) -> None:
        self._outdated |= outdated
        self.best = {name: best for name, best in self.best.items() if best != self._outdated.get(name)}

    def state_dict(self) -> dict[str, Any]:
        """Return the best metrics, and those that are of other evaluation images.

        A resumed run reads the folders, which may be newer.
        """
        return {"best": self.best, "outdated": self._outdated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note which best weights there were, and forget the metrics of other evaluation images."""
        self._saved = state_dict["best"]
        self._forget(state_dict.get("outdated", {}))

    def on_resumed(self, trainer: "LoopTrainer", state: Path, **kwargs: Any) -> None:
        if trainer.run_dir is not None and trainer.run_dir.resolve() in state.resolve().parents:
            missing = self._saved.keys() - self.best.keys() - self._lost
            what = "Expected {!r} to hold the best weights, but it is missing."
            self._report_lost(trainer, {name: what.format(str(self.folder(name))) for name in missing})
        for name in sorted(self._lost & self._saved.keys() & trainer.evaluated_models().keys()):
            best = self._saved[name]
            if best["metric"] != metric_prefix(name) + self.watch_metric:
                continue
            restore = partial(self._restore, trainer, name, state.parent)
            found = on_main_process(trainer.current_run().accelerator, restore)
            if found is not None:
                self.best[name] = best
                trainer.print(f"Restored the weights in {str(self.folder(name))!r} from {str(found)!r}.")

    def _restore(self, trainer: "LoopTrainer", name: str, states: Path) -> Path | None:
        """Save lost weights again from the newest whole state of their epoch, and return its folder."""
        best = self._saved[name]
        for state in whole_states(states, epoch=best["epoch"]):
            common = state.load(COMMON)
            if common["callbacks"].get(type(self).__qualname__, {}).get("best", {}).get(name) == best:
                model = deepcopy(trainer.evaluated_models()[name])
                model.load_state_dict(weights_of(common, name))
                return state.folder if self._save(trainer, name, best, model) else None
        return None

    def on_training_run_epoch_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.current_run().skips_evaluation:
            return
        trainer.latest_metric("watch_metric", self.watch_metric)
        for name in self.FOLDERS.keys() & trainer.evaluated_models().keys():
            metric = metric_prefix(name) + self.watch_metric
            if metric in trainer.run_history.get_metric_names():
                self._save_if_better(trainer, name, metric)

    def would_save(self, metric: str, value: Any) -> bool:
        """Whether a metric is watched, and the value is better than that of the best weights."""
        for name in self.FOLDERS:
            if metric == metric_prefix(name) + self.watch_metric and isinstance(value, Real):
                return is_better(float(value), self.best.get(name, {}).get("value"), self.greater_is_better)
        return False

    def _save_if_better(self, trainer: "LoopTrainer", name: str, metric: str) -> None:
        value = trainer.latest_metric("watch_metric", metric)
        if self.would_save(metric, value):
            epoch = trainer.run_history.current_epoch
            self._save(trainer, name, {"metric": metric, "value": value, "epoch": epoch})

    def _save(self, trainer: "LoopTrainer", name: str, best: dict[str, Any], model: Any = None) -> bool:
        """Save weights as the best ones, and return False where they cannot be written."""
        if not trainer.current_run().accelerator.is_main_process:
            self.best[name] = best
            return True
        with self._files[name].writing(trainer.print):
            save_classifier(
                trainer.evaluated_models()[name] if model is None else model,
                self.folder(name),
                class_names(trainer.train_dataset),
                getattr(trainer.eval_dataset, "data_config", None),
                best=best,
                greater_is_better=self.greater_is_better,
                **({"multi_label": True} if is_multi_label(trainer.train_dataset) else {}),
            )
            self.best[name] = best
        return not self._files[name].failed

    def folder(self, name: str) -> Path:
        """Return the folder of the best weights of the model or of the EMA model."""
        assert self._root is not None
        return self._root / self.FOLDERS[name]


def _best_in(folder: Path) -> dict[str, Any]:
    """Return the metric by which the weights in a folder are the best, its value and the epoch.

    Raises:
        ValueError: The weights or their config are missing or not as they were saved.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"Expected {str(folder)!r} to hold the best weights, but {CONFIG_FILE!r} is missing.")
    config = read_config(folder)
    check_weights(folder, config)
    best: Any = config.get("best")
    match best:
        case {"metric": str(), "value": float(value), "epoch": int()} if isfinite(value):
            return best
    raise ValueError(
        f"Expected 'best' in {str(folder / CONFIG_FILE)!r} to hold a metric, a finite value and an epoch, but got "
        f"{str(best)[:100]!r}."
    )

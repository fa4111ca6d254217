"""Model soups: average the weights of several runs, uniformly or greedily."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from timm_accel.atomic import atomic_write
from timm_accel.messages import counted, nearest
from timm_accel.models import CONFIG_FILE, WEIGHTS_FILE, open_classifier, read_config, signed_config
from timm_accel.models.loading import DATA_KEYS
from timm_accel.models.opening import best_folders
from timm_accel.models.saving import PIXEL_RANGE
from timm_accel.models.sources import read_source
from timm_accel.states.folder import LATEST, open_state
from timm_accel.states.growing import load_common
from timm_accel.states.saved_state import COMMON, SavedState
from timm_accel.states.weights import EMA_MODEL, held_weights, metric_prefix

__all__ = ["average_weights"]

METHODS = ("uniform", "greedy")
_EMA_PREFIX = metric_prefix(EMA_MODEL)
_SHARED = ("architecture", "num_classes", "label_names", "multi_label", PIXEL_RANGE)
_NOT_OF_THE_SOUP = ("best", "greater_is_better", "temperature")
"""Entries of a config that hold only for its weights; a soup needs another temperature, for example."""


def average_weights(
    folders: Sequence[str | Path],
    *,
    out: str | Path,
    metric: str | None = None,
    count: int | None = None,
    greater_is_better: bool | None = None,
    method: str = "uniform",
    evaluate: Callable[[nn.Module], float] | None = None,
) -> Path:
    """Average the weights of several runs of one model, and write the soup as a folder of weights.

    Floating-point tensors are averaged in double precision, including BatchNorm's running statistics. Integers are
    those of the newest weights. Classes, data config and architecture are equal in all folders. A fitted temperature
    is left out: fit that of the soup.

    Args:
        folders: At least two: folders of weights (``best``), of runs (``best_ema``, or else ``best``), or of states
            (their EMA weights, or otherwise their model) within a run that has such a folder.
        out: A new folder.
        metric: The recorded metric to choose by; the metrics of a model and of its EMA model count as the same. None
            for that of the first folder. Without `count` it only sets the default of `greater_is_better`.
        count: How many weights to choose, the best by `metric`; None for all.
        greater_is_better: Whether greater values of the metric, and of `evaluate`, are better; None for True, or False
            if "loss" is in the metric's name.
        method: ``uniform`` averages all chosen weights. ``greedy`` starts from the best by `evaluate` and tries the
            others from best to worst: each is kept if the soup gets no worse.
        evaluate: Called with a model in evaluation mode; returns its score on images that are neither trained nor
            tested on.

    Returns:
        `out`. ``averaged`` in its ``config.json`` lists the folders in the soup and how they were chosen.

    Raises:
        FileExistsError: `out` exists already.
        FileNotFoundError: A folder holds no weights, or the run of a state has no ``config.json``.
        ValueError: There are fewer than two folders or than `count`, the method is unknown or lacks `evaluate`, a
            metric was not recorded or is not finite, or the models, their classes or their data configs differ.

    Source: Model soups, arXiv 2203.05482.
    """
    out = Path(out)
    _check_options(folders, out, count, method, evaluate)
    chosen = [_open(folder) for folder in folders]
    _check_compatible(chosen)
    about: dict[str, Any] = {"method": method}
    if count is not None:
        metric = _the_metric(chosen, metric)
        about |= {"metric": metric, "greater_is_better": _is_greater_better(metric, greater_is_better)}
        chosen.sort(key=lambda each: each.metrics[metric], reverse=about["greater_is_better"])
        chosen = chosen[:count]
    if evaluate is not None:
        chosen = _greedy(chosen, evaluate, _is_greater_better(metric, greater_is_better))
    about["folders"] = [str(each.folder) for each in chosen]
    config = {name: value for name, value in chosen[0].config.items() if name not in _NOT_OF_THE_SOUP}
    with atomic_write(out) as folder:
        folder.mkdir()
        _write(folder, _mean(chosen), config | {"averaged": about})
    return out


@dataclass(frozen=True)
class _Candidate:
    """The weights of one folder; the tensors are read again whenever they are needed."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, float]
    """The recorded metrics, without the prefix of the EMA model."""
    written: float
    shapes: dict[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        return read_source(self.folder).tensors


def _open(folder: str | Path) -> _Candidate:
    source = read_source(folder)
    for name, tensor in source.tensors.items():
        if tensor.isnan().any():  # some models hold infinite values on purpose
            raise ValueError(f"Expected weights to be finite, but got NaN in {name} of {source.where!r}. Leave it out.")
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in source.tensors.items()}
    if source.config:
        where, best = Path(source.where), source.config.get("best")
        metrics = {} if best is None else {best["metric"].removeprefix(_EMA_PREFIX): best["value"]}
        return _Candidate(where, source.config, metrics, (where / WEIGHTS_FILE).stat().st_mtime, shapes)
    if Path(folder).is_file() and Path(folder).name != LATEST:
        raise ValueError(
            f"Expected folders to be folders with {WEIGHTS_FILE} and {CONFIG_FILE}, runs or states, but got the file "
            f"{str(folder)!r}. Name its folder."
        )
    state = open_state(folder)
    metrics = _metrics_of_state(state)
    return _Candidate(state.folder, _config_of_run(state), metrics, (state.folder / COMMON).stat().st_mtime, shapes)


def _metrics_of_state(state: SavedState) -> dict[str, float]:
    """Return the latest metrics of the weights that `read_source` takes from a state: EMA weights or the model's."""
    common = load_common(state)
    held = held_weights(common).name
    latest = {name: values[-1] for name, values in common["history"]["metrics"].items() if values}
    return {
        name.removeprefix(metric_prefix(held)): value
        for name, value in latest.items()
        if name.startswith(_EMA_PREFIX) == (held == EMA_MODEL)
    }


def _config_of_run(state: SavedState) -> dict[str, Any]:
    run = state.folder.parent.parent
    if folders := best_folders(run):
        return read_config(folders[-1])
    raise FileNotFoundError(
        f"Expected the run of the state {str(state.folder)!r} to have best/{CONFIG_FILE}, since a state does not say "
        f"what model it is of, but got {str(run)!r} without. Train with SaveBestCallback."
    )


def _check_options(folders: Sequence[Any], out: Path, count: int | None, method: str, evaluate: Any) -> None:
    if isinstance(folders, str) or not isinstance(folders, Sequence) or len(folders) < 2:
        raise ValueError(f"Expected folders to be at least two, but got {folders!r}. Name those of several runs.")
    if method not in METHODS:
        raise ValueError(
            f"Expected method to be one of {', '.join(METHODS)}, but got {method!r}. {nearest(method, METHODS)}"
        )
    if (evaluate is not None) != (method == "greedy"):
        raise ValueError(
            f"Expected evaluate with method='greedy', and only with it, but got {evaluate!r} with {method!r}. "
            "Pass a function of a model that returns its score on held-out images."
        )
    if count is not None and not 1 <= count <= len(folders):
        raise ValueError(
            f"Expected count to be from 1 to the number of folders, {len(folders)}, but got {count}. None takes all."
        )
    if out.exists():
        raise FileExistsError(f"Expected out to be a new folder, but got {str(out)!r}, which exists. Choose another.")


def _check_compatible(candidates: list[_Candidate]) -> None:
    first = candidates[0]
    expected = _compared_entries(first.config)
    for other in candidates[1:]:
        for key, value in _compared_entries(other.config).items():
            if expected[key] != value:
                raise ValueError(
                    f"Expected folders of one model, but got {str(first.folder)!r} with {key} "
                    f"{expected[key]!r} and {str(other.folder)!r} with {value!r}. "
                    "Average runs of the same model on the same classes and data config."
                )
        names = [*first.shapes, *(name for name in other.shapes if name not in first.shapes)]
        if differing := [name for name in names if first.shapes.get(name) != other.shapes.get(name)]:
            others = f" and {counted(len(differing) - 1, 'other')}" if len(differing) > 1 else ""
            raise ValueError(
                f"Expected folders with the same tensors, but got {str(first.folder)!r} and {str(other.folder)!r}, "
                f"which differ in {differing[0]!r}{others}. Average runs of the same model."
            )


def _compared_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that must be equal in all configs."""
    data_config = config.get("pretrained_cfg", {})
    return {key: config.get(key) for key in _SHARED} | {key: data_config.get(key) for key in DATA_KEYS}


def _is_greater_better(metric: str | None, given: bool | None) -> bool:
    return "loss" not in (metric or "") if given is None else given


def _the_metric(candidates: list[_Candidate], given: str | None) -> str:
    """Return the metric to choose by; raise unless all weights have it."""
    metric = given.removeprefix(_EMA_PREFIX) if given else next(iter(candidates[0].metrics), None)
    for each in candidates:
        if metric not in each.metrics:
            raise ValueError(
                f"Expected metric to be one that was recorded with all weights, but got {metric!r}, which "
                f"{str(each.folder)!r} lacks. {nearest(metric, each.metrics)}"
            )
        if not isfinite(each.metrics[metric]):
            raise ValueError(
                f"Expected {metric} to be finite, but got {each.metrics[metric]} in {str(each.folder)!r}. Leave it out."
            )
    assert metric is not None
    return metric


def _greedy(
    ranked: list[_Candidate], evaluate: Callable[[nn.Module], float], greater_is_better: bool
) -> list[_Candidate]:
    """Try the candidates from best to worst, and keep each that makes the soup no worse."""
    sign = 1 if greater_is_better else -1

    def score(chosen: list[_Candidate]) -> float:
        value = float(evaluate(_rebuilt(chosen)))
        if not isfinite(value):
            names = [str(each.folder) for each in chosen]
            raise ValueError(f"Expected evaluate to return a finite score, but got {value} for {names}. Look at it.")
        return sign * value

    alone = {id(each): score([each]) for each in ranked}
    first, *others = sorted(ranked, key=lambda each: alone[id(each)], reverse=True)
    chosen, best = [first], alone[id(first)]
    for each in others:
        if (value := score([*chosen, each])) >= best:
            chosen, best = [*chosen, each], value
    return chosen


def _rebuilt(chosen: list[_Candidate]) -> nn.Module:
    with TemporaryDirectory() as folder:
        _write(Path(folder), _mean(chosen), chosen[0].config)
        return open_classifier(folder)[0]


def _mean(candidates: list[_Candidate]) -> dict[str, torch.Tensor]:
    newest = max(candidates, key=lambda each: each.written).tensors()
    sums = {
        name: torch.zeros_like(value, dtype=torch.double) for name, value in newest.items() if value.is_floating_point()
    }
    for each in candidates:
        tensors = each.tensors()
        for name, total in sums.items():
            total += tensors[name]
    _refuse_infinite(candidates, [name for name, total in sums.items() if not total.isfinite().all()])
    return newest | {name: (total / len(candidates)).to(newest[name].dtype) for name, total in sums.items()}


def _refuse_infinite(candidates: list[_Candidate], names: list[str]) -> None:
    """Refuse tensors with infinite values, except values that all candidates hold on purpose."""
    for name in names:
        tensors = [each.tensors()[name] for each in candidates]
        shared = torch.stack([tensor.isinf() & (tensor == tensors[0]) for tensor in tensors]).all(0)
        for each, tensor in zip(candidates, tensors, strict=True):
            if (tensor.isinf() & ~shared).any():
                raise ValueError(
                    f"Expected weights to be finite, but got infinity in {name} of {str(each.folder)!r}. Leave it out."
                )


def _write(folder: Path, tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(signed_config(folder, config), indent=2))

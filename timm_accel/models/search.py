"""Search timm's models by name, size and pretrained weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import timm
from platformdirs import user_cache_dir

from timm_accel.atomic import atomic_write
from timm_accel.models.trial import create_on_meta
from timm_accel.terminal import progress_bar


@dataclass(frozen=True)
class ModelInfo:
    """A model of timm.

    Args:
        name: The name for `create_classifier`, such as ``resnet50``.
        num_parameters: The number of parameters, with its own classifier of, mostly, 1,000 classes.
        input_size: The ``(C, H, W)`` of the images that it is made for.
        tags: The tags of its pretrained weights; ``NAME.TAG`` is the name of a model with these weights.
    """

    name: str
    num_parameters: int
    input_size: tuple[int, ...]
    tags: tuple[str, ...]


def search_models(
    name: str = "*",
    *,
    tag: str | None = None,
    max_parameters: float | None = None,
    cache_folder: str | Path | None = None,
    progress: bool = False,
) -> list[ModelInfo]:
    """Return timm's models that fit, the smallest first.

    timm does not store how large its models are. So each model that fits by name is created once, without memory for
    its weights; this takes about a tenth of a second, and the number is kept on disk for this version of timm.

    Args:
        name: A name, or a part of it; with ``*`` and ``?`` a pattern of the whole name, in lower case.
        tag: The same for the tag of pretrained weights, such as ``in1k``; None for any model, also without weights.
        max_parameters: The largest number of parameters, such as 30e6; None for no limit.
        cache_folder: The folder of the stored numbers; None for the user's cache directory.
        progress: Whether a bar is shown while models are counted.

    Raises:
        ValueError: `max_parameters` is not positive.

    Source: ``timm.list_models``, ``timm.list_pretrained``.
    """
    if max_parameters is not None and not max_parameters > 0:
        raise ValueError(
            f"Expected max_parameters to be a positive number of parameters, but got {max_parameters!r}. "
            "Pass None for no limit."
        )
    tags = _matching_tags(tag)
    names = [each for each in timm.list_models() if _fits(name, each) and (tag is None or each in tags)]
    folder = Path(user_cache_dir("timm_accel") if cache_folder is None else cache_folder)
    sizes = _count_parameters(names, folder, progress)
    found = [
        ModelInfo(each, sizes[each], timm.get_pretrained_cfg(each).input_size, tuple(tags.get(each, ())))
        for each in names
        if max_parameters is None or sizes[each] <= max_parameters
    ]
    return sorted(found, key=lambda model: (model.num_parameters, model.name))


def _fits(pattern: str, text: str) -> bool:
    return fnmatchcase(text, pattern if set("*?[") & set(pattern) else f"*{pattern}*")


def _matching_tags(tag: str | None) -> dict[str, list[str]]:
    tags: dict[str, list[str]] = {}
    for full_name in timm.list_pretrained():
        name, _, own = full_name.partition(".")
        if _fits(tag or "*", own):
            tags.setdefault(name, []).append(own)
    return tags


def _count_parameters(names: list[str], folder: Path, progress: bool) -> Mapping[str, int]:
    file = folder / f"model_sizes_{timm.__version__}.json"
    try:
        stored = {name: count for name, count in json.loads(file.read_text()).items() if isinstance(count, int)}
    except (OSError, ValueError, AttributeError):  # there is none yet, or it is damaged
        stored = {}
    missing = [name for name in names if name not in stored]
    for name in progress_bar(missing, desc="counting parameters", unit="model", leave=False, shown=progress):
        stored[name] = sum(parameter.numel() for parameter in create_on_meta(name).parameters())
    if missing:
        try:
            with atomic_write(file, shared=True, flush=False) as path:
                path.write_text(json.dumps(stored))
        except OSError:
            pass  # the next search counts again
    return stored

"""Read weights from a file, a folder of weights, a run or a state of a run, or let timm download them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from timm.models import clean_state_dict, load_model_config_from_hf, load_state_dict

from timm_accel.messages import nearest_path, one_line, quoted_sentence
from timm_accel.models.integrity import CONFIG_FILE, WEIGHTS_FILE, check_weights, read_config
from timm_accel.states.folder import LATEST, open_state
from timm_accel.states.run_dir import why_no_weights
from timm_accel.states.saved_state import COMMON, MANIFEST
from timm_accel.states.weights import BEST_FOLDERS, EMA_MODEL, held_weights

FILE_TYPES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
_LOCAL = "local-dir:"
_PYTORCH = "model_state_dict"  # the name in torch's tutorials; timm looks for state_dict and model
_LIGHTNING = "model."  # before every name, if a LightningModule holds the model under that name
_BEST = tuple(reversed(BEST_FOLDERS.values()))
_FAILURES = (OSError, EntryNotFoundError, HFValidationError, HTTPException)
"""Of the hub and of urllib: no network, no such repository or file, an error of the server, no space."""


@dataclass(frozen=True)
class FoundWeights:
    """Weights and where they were found.

    Args:
        where: The file, folder or name of the weights.
        tensors: The tensors by name.
        config: The content of ``config.json`` in the same folder; empty where there is none.
        is_remote: Whether timm still has to download the tensors.
        class_names: The class names of a state; those of a folder are in its config.
    """

    where: str
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    is_remote: bool = False
    class_names: Any = None


def is_remote(weights: str) -> bool:
    """Return whether timm downloads these weights: ``hf-hub:…``, or a timm model with its tag."""
    if weights.startswith(("hf-hub:", "hf_hub:")):
        return True
    if "/" in weights or weights.startswith(_LOCAL):
        return False
    return Path(weights).suffix not in FILE_TYPES and not Path(weights).exists()


def read_source(weights: str | Path) -> FoundWeights:
    """Read weights from disk; only tensors and plain values are read, and no code is run.

    Args:
        weights: A file; a folder with ``model.safetensors`` and ``config.json``, with or without ``local-dir:`` before
            it; the folder of a run, whose ``best_ema`` is read if there is one, otherwise ``best``; or the folder of a
            state, whose EMA weights are read if there are any.

    Raises:
        FileNotFoundError: The file or folder does not exist, or it holds no weights.
        ValueError: The file is of another kind, or cannot be read.
    """
    path = Path(str(weights).removeprefix(_LOCAL))
    if path.is_dir():
        return _read_folder(path)
    if path.name == LATEST and path.is_file():
        return _read_state(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected weights to be a file, a folder, a run or a name of timm, but got {str(weights)!r}, which does "
            f"not exist. {nearest_path(path, 'Look for a spelling mistake.')}"
        )
    if path.suffix not in FILE_TYPES:
        raise ValueError(
            f"Expected weights to be a file of {', '.join(FILE_TYPES)}, but got {str(path)!r}. Convert it first."
        )
    return FoundWeights(str(path), _tensors(path))


def _read_folder(folder: Path) -> FoundWeights:
    if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        config = read_config(folder)
        check_weights(folder, config)
        return FoundWeights(str(folder), _tensors(folder / WEIGHTS_FILE), config)
    for name in _BEST:
        if (folder / name / WEIGHTS_FILE).is_file():
            return _read_folder(folder / name)
    if (folder / MANIFEST).is_file():
        return _read_state(folder)
    if (why := why_no_weights(folder)) is not None:
        raise FileNotFoundError(
            f"Expected weights to be a run with {' or '.join(_BEST)}, but got {str(folder)!r}, {why}"
        )
    raise FileNotFoundError(
        f"Expected weights to be a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, a run with {' or '.join(_BEST)}, or a "
        f"state, but got {str(folder)!r} without these. Name one of its files."
    )


def _read_state(path: Path) -> FoundWeights:
    state = open_state(path)
    state.check()
    held = held_weights(state.load(COMMON))
    if any(".base_layer." in name for name in held.tensors):
        raise ValueError(
            "Expected weights to be those of a model, but got those of the state "
            f"{str(state.folder)!r}, whose layers have adapters (lora) beside them. Name best or best_ema of its run, "
            "where they are merged."
        )
    which = "its EMA weights" if held.name == EMA_MODEL else "its model"
    named = state.manifest.get("run", {}).get("classes")
    return FoundWeights(f"{state.folder} ({which})", held.tensors, class_names=named)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.stat().st_size == 0:
        raise ValueError(
            f"Expected weights to be a file with tensors, but got {str(path)!r}, which is empty. Copy or save it again."
        )
    try:
        found = load_state_dict(str(path))
    except Exception as error:  # safetensors, pickle and zip raise different classes
        raise ValueError(
            f"Expected weights to be tensors that load without running code, but got {str(path)!r} "
            f"({type(error).__name__}: {one_line(error)}). Save a state dict with torch.save or safetensors."
        ) from error
    return _unwrapped(found, path)


def _unwrapped(found: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint: its own, or those of the one state dict in it that timm does not know."""
    nested = {name: tensors for name, value in found.items() if (tensors := _tensors_of(value))}
    tensors = _tensors_of(found)
    if _PYTORCH in nested:
        nested = {_PYTORCH: nested[_PYTORCH]}
    if len(nested) > 1:
        raise ValueError(
            f"Expected weights to hold one state dict, but got {str(path)!r} with {', '.join(map(repr, nested))}. Save "
            "that of the model alone."
        )
    for inner in nested.values():
        tensors = inner if len(inner) > len(tensors) else tensors
    if not tensors:
        raise ValueError(
            f"Expected weights to hold tensors by name, but got {str(path)!r} without any. Save model.state_dict()."
        )
    tensors = clean_state_dict(tensors)
    if all(name.startswith(_LIGHTNING) for name in tensors):
        tensors = clean_state_dict({name.removeprefix(_LIGHTNING): tensor for name, tensor in tensors.items()})
    return tensors


def _tensors_of(value: Any) -> dict[str, torch.Tensor]:
    if not isinstance(value, Mapping):
        return {}
    return {str(name): tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}


def create_pretrained(weights: str, **options: Any) -> Any:
    """Create a timm model with its weights from the network or the cache.

    Args:
        weights: A model of ``timm.list_models()``, with or without its tag, or ``hf-hub:…``.
        **options: Arguments of ``timm.create_model``.

    Raises:
        OSError: They could not be downloaded.
    """
    try:
        return timm.create_model(weights, pretrained=True, **options)
    except _FAILURES as error:
        raise _not_downloaded(weights, error) from error


def architecture_of(weights: str) -> str:
    """Return the architecture that the config of ``hf-hub:…`` names.

    Raises:
        OSError: The config could not be downloaded.
    """
    try:
        return load_model_config_from_hf(weights.split(":", 1)[1])[1]
    except _FAILURES as error:
        raise _not_downloaded(weights, error) from error


def _not_downloaded(weights: str, error: Exception) -> OSError:
    return OSError(
        f"Expected to download the weights of {weights!r} or to find them in the cache, but got "
        f"{type(error).__name__}: {quoted_sentence(error, 300)} Check the name and the network, or pass a file of "
        "weights."
    )

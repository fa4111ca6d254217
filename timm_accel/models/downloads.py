"""Create a model with weights that timm downloads, or tell in a sentence why they did not come."""

from http.client import HTTPException
from typing import Any

import timm
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from timm.models import load_model_config_from_hf

from timm_accel.messages import one_line

_FAILURES = (OSError, EntryNotFoundError, HFValidationError, HTTPException)
"""Of the hub and of urllib: no network, no such repository or file, an error of the server, no space."""


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
        f"{type(error).__name__}: {one_line(error)} Check the name and the network, or pass a file of weights."
    )

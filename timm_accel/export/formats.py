"""The three formats by the suffix of the file, and the packages that they need."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from warnings import catch_warnings, filterwarnings

import torch

from timm_accel.messages import missing_extra, nearest

SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".pt": "torchscript", ".torchscript": "torchscript"}


def format_of(path: str | Path) -> str:
    """Return ``onnx``, ``pt2`` or ``torchscript`` by the suffix.

    Raises:
        ValueError: The suffix belongs to none of them.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"Expected path to end in {', '.join(SUFFIXES)}, but got {str(path)!r}. {nearest(suffix, SUFFIXES)}"
        )
    return SUFFIXES[suffix]


def check_suffix(path: str | Path, file_format: str) -> None:
    """Raise a `ValueError` when the suffix of a path is not one of the format's."""
    if format_of(path) != file_format:
        suffixes = " or ".join(suffix for suffix, name in SUFFIXES.items() if name == file_format)
        raise ValueError(
            f"Expected path to end in {suffixes} for {file_format}, but got {str(path)!r}. The suffix tells the format "
            "when the file is opened."
        )


def check_installed(*modules: str) -> None:
    """Raise a `ModuleNotFoundError` that names the extra when one of these modules cannot be imported."""
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise missing_extra("export", "ONNX", error.name) from error


@contextmanager
def known_warnings_silenced() -> Iterator[None]:
    """Silence torch's warnings about its exporters; every file is compared with the model anyway."""
    with catch_warnings():
        # torch 2.11 to 2.14: for each function of torch.jit
        filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", FutureWarning)
        filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", DeprecationWarning)
        # torch 2.9 to 2.14: for the older ONNX exporter, which is the fallback here
        filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning)
        filterwarnings("ignore", "The feature will be removed. Please remove usage", DeprecationWarning)
        # torch 2.11: for a `.pt2` file that it reads, once in a process
        filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        # all versions: for a shape that tracing records as a constant
        filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield

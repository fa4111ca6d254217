"""The pooled features of all images of a dataset, for search, clustering or a classifier on top."""

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from timm_accel.atomic import atomic_write
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.loader_errors import loader_errors_explained
from timm_accel.data.readers.manifest_reader import import_pyarrow
from timm_accel.data.resources import check_loader_options
from timm_accel.distributed.shares import interleaved, share_of_process
from timm_accel.features.modules import pooled_features
from timm_accel.models.finite import check_finite
from timm_accel.terminal import progress_bar

_SUFFIXES = (".parquet", ".npz")


@dataclass(frozen=True)
class Embeddings:
    """Features of the images of a dataset, in its order.

    Args:
        features: ``(N, num_features)``, float32.
        labels: ``(N,)``, or ``(N, …)`` as in the dataset.
    """

    features: np.ndarray
    labels: np.ndarray


class _Pairs(Dataset):
    """The image and the label of each sample, which may have more."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label, *_ = self.data[index]
        return image, label


def extract_embeddings(
    model: nn.Module,
    data: Any,
    path: str | Path | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> Embeddings:
    """Compute the pooled features of each image once, in the order of the dataset. Collective.

    Each of the n processes of a launch computes every n-th batch. All return all embeddings, and rank 0 writes the
    file. The model does not change and stays on its device.

    Args:
        model: A timm classifier, on the device to compute on.
        data: A map-style dataset of (image, label) with evaluation transforms. An unreadable image is an error for any
            ``on_error``, since embeddings are in the order of the images.
        path: A new ``.parquet`` file, with columns index, label and features, or an ``.npz`` file, with arrays of these
            names; None writes no file.
        batch_size: Images at a time.
        num_workers: Loader processes.
        progress: Whether rank 0 shows a bar.

    Raises:
        ModuleNotFoundError: The extra ``parquet`` is not installed for a ``.parquet`` file.
        OSError: An image cannot be read; the message has its name.
        TypeError: The dataset cannot be indexed.
        ValueError: The dataset is empty, a feature is NaN or infinite, the file is of another kind, or the launched
            processes do not run together.
    """
    _check(data, path)
    check_loader_options(batch_size, num_workers)
    share = share_of_process(True)
    batches: Any = share.batches(len(data), batch_size)

    @loader_errors_explained()
    def compute() -> list[tuple[np.ndarray, ...]]:
        loader = DataLoader(_Pairs(_strict(data)), batch_sampler=batches, num_workers=num_workers)
        read = progress_bar(loader, unit="batch", shown=progress and share.is_first)
        return _computed(pooled_features(model), read, f"the model, a {type(model).__name__}")

    parts = interleaved(share.gather(compute))
    features, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    made = Embeddings(features, labels)
    if path is not None:
        share.of_first(lambda: _write(made, Path(path)))
    return made


def _strict(data: Any) -> Any:
    """Return a copy of a dataset that raises at an unreadable image; the original does not change."""
    if not isinstance(data, LabeledImages | Subset):
        return data
    strict = copy(data)
    if isinstance(strict, LabeledImages):
        strict.on_error = "raise"
    else:
        strict.dataset = _strict(strict.dataset)
    return strict


@torch.no_grad()
def _computed(extractor: nn.Module, batches: Any, source: str) -> list[tuple[np.ndarray, ...]]:
    device = next((tensor.device for tensor in extractor.parameters()), torch.device("cpu"))
    return [
        (_finite(extractor(images.to(device)).float().cpu(), source).numpy(), np.asarray(labels))
        for images, labels in batches
    ]


def _finite(features: torch.Tensor, source: str) -> torch.Tensor:
    check_finite(features, source)
    return features


def _check(data: Any, path: str | Path | None) -> None:
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(
            f"Expected data to be a map-style dataset, since ranks share its images by index, but got "
            f"{type(data).__name__}. Collect it in a list of (image, label)."
        )
    if len(data) == 0:
        raise ValueError("Expected data to have at least one image, but got none. Look at what made it.")
    if path is not None and Path(path).suffix not in _SUFFIXES:
        raise ValueError(
            f"Expected path to end in {' or '.join(_SUFFIXES)}, but got {str(path)!r}. Rename it, or leave it out."
        )
    if path is not None and Path(path).suffix == ".parquet":
        import_pyarrow()


def _write(made: Embeddings, path: Path) -> None:
    index = np.arange(len(made.features))
    with atomic_write(path) as unfinished:
        if path.suffix == ".npz":
            np.savez(unfinished, index=index, label=made.labels, features=made.features)
        else:
            pyarrow = import_pyarrow()
            columns = {"index": index, "label": _column(pyarrow, made.labels)}
            columns["features"] = _column(pyarrow, made.features)
            pyarrow.parquet.write_table(pyarrow.table(columns), unfinished)


def _column(pyarrow: Any, values: np.ndarray) -> Any:
    """Return a column of numbers, or of lists of equal length."""
    if values.ndim == 1:
        return pyarrow.array(values)
    return pyarrow.FixedSizeListArray.from_arrays(values.reshape(-1), int(np.prod(values.shape[1:])))

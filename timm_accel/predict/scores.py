"""The probabilities of a classifier for labeled images, with the path and the label of each image, as a table too."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, nll_loss

from timm_accel.atomic import atomic_write
from timm_accel.data.readers.manifest_reader import import_pyarrow
from timm_accel.text_files import escaped, unescaped

_ABOUT = b"timm_accel.scores"


@dataclass(frozen=True)
class Scores:
    """The probabilities of labeled images; the order of all fields of images is the same.

    Args:
        paths: The file of each image, or its name in an archive.
        targets: The labels, ``(N,)``, or for multi-label images ``(N, num_classes)`` of 0 and 1.
        probabilities: ``(N, num_classes)``, float64.
        class_names: The classes, in the order of the probabilities.
        unreadable: The files that could not be read, and were left out.
        missing_classes: The classes that the data do not have.
        temperature: The divisor of the logits.
        tta: The test-time augmentation.
    """

    paths: list[str]
    targets: Tensor
    probabilities: Tensor
    class_names: list[str]
    unreadable: list[str]
    missing_classes: list[str]
    temperature: float = 1.0
    tta: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have more than one label."""
        return self.targets.ndim == 2

    @property
    def losses(self) -> Tensor:
        """The negative log-likelihood of each image, ``(N,)``; for multi-label images the mean over the classes."""
        if self.is_multi_label:
            each = binary_cross_entropy(self.probabilities, self.targets.to(self.probabilities), reduction="none")
            return each.mean(dim=1)
        smallest = torch.finfo(self.probabilities.dtype).tiny
        return nll_loss(self.probabilities.clamp(min=smallest).log(), self.targets, reduction="none")

    def labels_of(self, index: int) -> tuple[str, ...]:
        """Return the names of the labels of an image."""
        numbers = self.targets[index].nonzero().flatten() if self.is_multi_label else [self.targets[index]]
        return tuple(self.class_names[int(number)] for number in numbers)

    def take(self, indices: Sequence[int] | Tensor) -> "Scores":
        """Return the scores of some images, in the order of the indices."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        paths = [self.paths[index] for index in chosen.tolist()]
        fields = {**vars(self), "paths": paths, "targets": self.targets[chosen]}
        return Scores(**{**fields, "probabilities": self.probabilities[chosen]})

    def to_parquet(self, path: str | Path) -> None:
        """Write a parquet file, atomically: a row for each image with path, labels, and probabilities of all classes.

        Raises:
            ModuleNotFoundError: The extra ``parquet`` is not installed.
            OSError: Nothing can be written there.
            ValueError: The name does not end in ``.parquet``.
        """
        if Path(path).suffix.lower() != ".parquet":
            raise ValueError(f"Expected path to end in .parquet, but got {str(path)!r}. Rename it.")
        pyarrow = import_pyarrow()
        columns = {
            "path": [escaped(each) for each in self.paths],
            "labels": [[escaped(name) for name in self.labels_of(index)] for index in range(len(self))],
            "probabilities": list(self.probabilities.numpy()),
        }
        about = {
            "class_names": self.class_names,
            "unreadable": self.unreadable,
            "missing_classes": self.missing_classes,
            "temperature": self.temperature,
            "tta": self.tta,
            "multi_label": self.is_multi_label,
        }
        texts, numbers = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
        kinds = pyarrow.schema({"path": pyarrow.string(), "labels": texts, "probabilities": numbers})
        table = pyarrow.table(columns, schema=kinds.with_metadata({_ABOUT: json.dumps(about)}))
        with atomic_write(path) as unfinished:
            pyarrow.parquet.write_table(table, unfinished)

    @classmethod
    def from_parquet(cls, path: str | Path) -> "Scores":
        """Read a file from `to_parquet`.

        Raises:
            FileNotFoundError: There is no such file.
            ModuleNotFoundError: The extra ``parquet`` is not installed.
            ValueError: The file is no such table.
        """
        pyarrow = import_pyarrow()
        if not Path(path).is_file():
            raise FileNotFoundError(f"Expected a file with scores, but got {str(path)!r}, which does not exist.")
        try:
            table = pyarrow.parquet.read_table(path)
            about: dict[str, Any] = json.loads(table.schema.metadata[_ABOUT])
            names = about["class_names"]
            labels = [[names.index(unescaped(name)) for name in row] for row in table["labels"].to_pylist()]
            values = table["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            probabilities = torch.from_numpy(np.array(values, dtype=np.float64)).reshape(len(labels), len(names))
            targets = torch.tensor([row[0] for row in labels]) if not about["multi_label"] else _many(labels, names)
            return cls(
                [unescaped(each) for each in table["path"].to_pylist()],
                targets,
                probabilities,
                names,
                about["unreadable"],
                about["missing_classes"],
                about["temperature"],
                tuple(about["tta"]),
            )
        except (pyarrow.ArrowException, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"Expected a parquet file with the scores of images, but got {str(path)!r}, which is none. "
                "Write one with Scores.to_parquet."
            ) from error


def _many(labels: list[list[int]], names: list[str]) -> Tensor:
    targets = torch.zeros(len(labels), len(names))
    for row, numbers in zip(targets, labels, strict=True):
        row[numbers] = 1
    return targets

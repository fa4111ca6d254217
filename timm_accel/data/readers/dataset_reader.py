"""A torch dataset as a timm reader."""

from typing import Any

import numpy as np
from timm.data.readers.reader import Reader

from timm_accel.data.classes import class_names


class DatasetReader(Reader):
    """Wrap a torch dataset of (image, label) as a timm reader.

    Args:
        dataset: Any map-style dataset of PIL images. If it has a transform, that must return PIL images.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset
        targets = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
        if targets is None:
            targets = [dataset[number][1] for number in range(len(dataset))]
        self.labels = np.asarray(targets)
        names = class_names(dataset) or [str(number) for number in range(int(self.labels.max()) + 1)]
        self.class_to_idx = {name: number for number, name in enumerate(names)}

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label, *_ = self.dataset[index]
        return image, int(label)

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{type(self.dataset).__name__}[{index}]"

"""Write a custom reader: three short methods are enough to read images from any place.

    python examples/data/custom_reader.py

This reader reads a pair of IDX files, the format of MNIST. The script first writes such a pair from scikit-learn's
digits.
"""

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.datasets import load_digits
from timm.data import ImageDataset, create_transform
from timm.data.readers.reader import Reader
from timm.optim import create_optimizer_v2
from torch import nn

from timm_accel import TimmTrainer, create_classifier


class IdxReader(Reader):
    """Grayscale images and their labels from ``<name>-images-idx3-ubyte`` and ``<name>-labels-idx1-ubyte``."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self.name = name
        _, _, *size = np.fromfile(folder / f"{name}-images-idx3-ubyte", ">u4", count=4)
        self.images = np.fromfile(folder / f"{name}-images-idx3-ubyte", "u1", offset=16).reshape(-1, *size)
        self.labels = np.fromfile(folder / f"{name}-labels-idx1-ubyte", "u1", offset=8)
        self.class_to_idx = {str(label): label for label in range(self.labels.max() + 1)}

    def __getitem__(self, index: int) -> tuple[BytesIO, int]:
        height, width = self.images[index].shape
        header = f"P5 {width} {height} 255\n".encode()  # the header makes the pixels a PGM file, which Pillow opens
        return BytesIO(header + self.images[index].tobytes()), int(self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{self.name}/{index}"  # there are no files, so this is the name in messages


def write_idx(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write grayscale images ``(N, height, width)`` and labels ``(N,)`` of one byte each in the format of MNIST."""
    for what, bytes_, magic in (("images-idx3", images, 0x803), ("labels-idx1", labels, 0x801)):
        header = np.array([magic, *bytes_.shape], ">u4").tobytes()
        (folder / f"{name}-{what}-ubyte").write_bytes(header + bytes_.astype("u1").tobytes())


def main(num_epochs: int = 1, model_name: str = "test_resnet") -> TimmTrainer:
    """Train, and return the trainer."""
    digits = load_digits()
    pixels = digits.images * 255 / 16
    with TemporaryDirectory() as folder:
        write_idx(Path(folder), "train", pixels[:1347], digits.target[:1347])
        write_idx(Path(folder), "val", pixels[1347:], digits.target[1347:])
        readers = [IdxReader(Path(folder), name) for name in ("train", "val")]

    torch.manual_seed(0)
    model, config = create_classifier(model_name, num_classes=10, image_size=32)
    transform = create_transform(32, mean=config["mean"], std=config["std"], crop_pct=1.0)
    train_set, val_set = (ImageDataset("", reader=reader, transform=transform) for reader in readers)
    trainer = TimmTrainer(
        model=model,
        optimizer=create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.01),
        loss_func=nn.CrossEntropyLoss(),
        num_classes=10,
    )
    trainer.train(train_set, num_epochs, val_set, per_device_batch_size=16)
    return trainer


if __name__ == "__main__":
    main()

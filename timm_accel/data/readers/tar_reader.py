"""Read images in tars, correctly in every loader worker, and find their splits by the folders in them."""

import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from timm_accel.data.splitting import SPLITS, split_name


class TarReader(ReaderImageInTar):
    """Extend timm's reader of a tar or of a folder of tars: each process opens its files again.

    timm's reader (1.0.31) keeps them open. If it reads before loader workers are forked, all of them share one file
    position, and some images are wrong.

    Args:
        root: The tar, or the folder of tars.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.labels = np.asarray(self.targets)
        self.class_to_idx = self.class_name_to_idx
        self._process = os.getpid()

    def __getitem__(self, index: int) -> Any:
        if self._process != os.getpid():
            self._process = os.getpid()
            states = [self.tar_state] if self.root_is_tar else list(self.tar_state.values())
            for state in states:
                state.reset()
        file, label = super().__getitem__(index)
        return file, int(label)


def open_tar(path: Path) -> TarReader:
    """Return the reader of a tar or of a folder of tars.

    Args:
        path: The tar, or the folder.

    Raises:
        FileNotFoundError: It holds no images.
        ValueError: The tar is incomplete or broken.
    """
    try:
        return TarReader(str(path))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"Expected a complete tar, but got {str(path)!r} ({error}). Copy or make it again.") from error
    except ValueError as error:
        raise FileNotFoundError(f"Expected a tar with images, but got {str(path)!r}, which holds none.") from error


def tar_splits(reader: Any) -> dict[str, np.ndarray] | None:
    """Return the indices of the images in each split's folder of a tar; None where it has no such folders."""
    if not isinstance(reader, TarReader):
        return None
    tops = [split_name(Path(reader.filename(number)).parts[0]) for number in range(len(reader))]
    found = {name: np.array([i for i, top in enumerate(tops) if top == name]) for name in SPLITS if name in tops}
    return found if {"train", "val"} & found.keys() else None

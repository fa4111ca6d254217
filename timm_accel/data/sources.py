"""Where images come from: one description, a reader of timm's kind for each split."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from timm.data.readers import create_reader
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset

from timm_accel.data.classes import class_names, in_label_order
from timm_accel.data.folder_index import FolderReader
from timm_accel.data.manifest_reader import ManifestReader
from timm_accel.data.splitting import split_by_class, write_split

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_STREAMS = ("hfids", "wds", "tfds")


@dataclass(frozen=True)
class Source:
    """A set of images and how it is divided.

    Args:
        data: A folder, a tar or a folder of tars, a manifest (``.csv``, ``.parquet``), ``torch/NAME``, ``hfds/NAME``, a
            timm `Reader`, a torch `Dataset` of (picture, label), or a mapping of ``train``, ``val`` and ``test`` to
            such.
        root: Where ``torch/…`` and ``hfds/…`` keep their files, or the paths of a manifest start.
        download: Whether ``torch/…`` may download.
        val_fraction: The share for evaluation of a set without splits.
        split_seed: The seed of that division.
        group: A regular expression with one group that finds in an image's path what must not be on both sides (a
            patient, a module); None: a manifest's column ``group``, or images stand alone.
        split_file: Where that division is written, as a manifest, and taken up from when it is there.
    """

    data: Any
    root: str | Path | None = None
    download: bool = False
    val_fraction: float = 0.2
    split_seed: int = 0
    group: str | None = None
    split_file: str | Path | None = None
    _divided: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def open(self, split: str) -> Any:
        """Return the reader of a split.

        Args:
            split: ``train``, ``val``, ``test`` or a synonym.

        Raises:
            FileNotFoundError: There is no such file or folder, or it holds no images.
            ValueError: There is no such split, or the source is of no known kind.
        """
        split = _one_name(split)
        if isinstance(self.data, Mapping):
            return self._of_mapping(split)
        if isinstance(self.data, Reader | Dataset):
            return self._divide(_as_reader(self.data), split)
        kind, _, name = str(self.data).partition("/")
        if kind.lower() in ("torch", "hfds", *_STREAMS) and not os.path.exists(self.data):
            return self._of_library(kind.lower(), name, split)
        return self._of_path(Path(self.data), split)

    def _of_mapping(self, split: str) -> Any:
        parts = {_one_name(name): part for name, part in self.data.items()}
        if split not in parts:
            raise _missing(split, sorted(parts), "the mapping")
        part = parts[split]
        return _as_reader(part) if isinstance(part, Reader | Dataset) else _whole(Path(part))

    def _of_library(self, kind: str, name: str, split: str) -> Any:
        if kind in _STREAMS:
            raise ValueError(
                f"Expected data that can be read at any place, but got {self.data!r}, which is a stream. Create timm's "
                "IterableImageDataset and pass it to train(), or use hfds/, tar or folder sources."
            )
        if kind == "torch":
            options = {"split": {"val": "validation"}.get(split, split), "download": self.download}
            try:
                return _as_reader(create_dataset(str(self.data), root=str(self.root or "data"), **options))
            except RuntimeError as error:
                raise FileNotFoundError(
                    f"Expected {self.data!r} to be in root, but got {str(self.root or 'data')!r} ({error}). Pass "
                    "download=True, or the folder that holds it."
                ) from error
            except AssertionError as error:
                raise ValueError(
                    f"Expected torch/NAME with a set that timm knows, but got {self.data!r} ({error}). Such as "
                    "'torch/cifar10', 'torch/mnist', 'torch/fashion_mnist', 'torch/imagenet'."
                ) from error
        try:
            return create_reader(f"hfds/{name}", root=self.root and str(self.root), split=self._hf_split(name, split))
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"Expected the extra 'hf' to be installed for {self.data!r}, but {error.name!r} is missing. "
                'Run pip install "timm_accel[hf]".',
                name=error.name,
            ) from error

    def _hf_split(self, name: str, split: str) -> str:
        from datasets import get_dataset_split_names

        known = get_dataset_split_names(name)
        found = [each for each in known if _one_name(each) == split]
        if not found:
            raise _missing(split, known, repr(self.data))
        return found[0]

    def _of_path(self, path: Path, split: str) -> Any:
        if re.search(r"\.(tar\.\w+|tgz)$", path.name):
            raise ValueError(
                f"Expected a plain tar, since images are read from any place in it, but got {str(path)!r}. Unpack the "
                "compression: gunzip FILE.tar.gz."
            )
        if path.suffix.lower() in (".csv", ".parquet", ".pq"):
            return self._of_manifest(path, split)
        if path.is_dir() and (folders := _split_folders(path)):
            if split not in folders:
                raise _missing(split, sorted(folders), repr(str(path)))
            return _whole(folders[split])
        return self._divide(_whole(path), split)

    def _of_manifest(self, path: Path, split: str) -> Any:
        whole = ManifestReader(path, root=self.root)
        if not whole.has_splits:
            return self._divide(whole, split)
        return ManifestReader(path, split=split, root=self.root, class_to_idx=whole.class_to_idx)

    def _divide(self, reader: Any, split: str) -> Any:
        """Return one side of a set without splits, or of a tar by its own folders."""
        if not self._divided:
            parts = _by_tar_folders(reader)
            if parts is None:
                parts = dict(zip(("train", "val"), self._drawn(reader), strict=True))
            self._divided.update({name: ReaderPart(reader, numbers) for name, numbers in parts.items()})
        if split not in self._divided:
            raise _missing(split, sorted(self._divided), "the data")
        return self._divided[split]

    def _drawn(self, reader: Any) -> tuple[np.ndarray, np.ndarray]:
        paths = [reader.filename(number) for number in range(len(reader))]
        labels, names = labels_of(reader), in_label_order(reader.class_to_idx)
        if self.split_file is not None and Path(self.split_file).exists():
            return _recorded(Path(self.split_file), paths)
        groups = getattr(reader, "groups", None) if self.group is None else [_group(self.group, path) for path in paths]
        train, val = split_by_class(labels, self.val_fraction, self.split_seed, groups, names)
        if self.split_file is not None:
            sides = {"train": train, "val": val}
            rows = {side: [(paths[i], names[labels[i]]) for i in numbers] for side, numbers in sides.items()}
            write_split(self.split_file, rows)
        return train, val


class ReaderPart(Reader):
    """Some of the images of a reader.

    Args:
        reader: The whole.
        numbers: Which of its images, ``(N,)``.
    """

    def __init__(self, reader: Any, numbers: np.ndarray) -> None:
        super().__init__()
        self.reader, self.numbers = reader, numbers
        self.class_to_idx = reader.class_to_idx
        self.labels = labels_of(reader)[numbers]

    def __getitem__(self, index: int) -> Any:
        return self.reader[int(self.numbers[index])]

    def __len__(self) -> int:
        return len(self.numbers)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.reader.filename(int(self.numbers[index]), basename, absolute)


class DatasetReader(Reader):
    """A torch data set of (picture, label) as a reader; its own transform is left out where it has one.

    Args:
        dataset: Any map-style data set whose pictures are Pillow's.

    Raises:
        ValueError: It has neither ``targets`` nor ``labels``, or no names of classes where labels are not numbers.
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
        picture, label, *_ = self.dataset[index]
        return picture, int(label)

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{type(self.dataset).__name__}[{index}]"


class TarReader(ReaderImageInTar):
    """timm's reader of a tar or of a folder of tars, which opens its files anew in each process.

    timm's (1.0.31) keeps them open: read once before loader workers are forked, they share one place in the file, and
    some images are wrong.

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


def labels_of(reader: Any) -> np.ndarray:
    """Return the label of each image of a reader, ``(N,)``."""
    if (labels := getattr(reader, "labels", None)) is None:
        targets = reader.iter_targets() if hasattr(reader, "iter_targets") else (label for _, label in reader.samples)
        labels = list(targets)
    return np.asarray(labels)


def _one_name(split: str) -> str:
    name = str(split).lower()
    return next((one for one, synonyms in SPLITS.items() if name in synonyms), name)


def _missing(split: str, known: Sequence[str], where: str) -> ValueError:
    return ValueError(
        f"Expected a split {split!r} in {where}, but got {list(known)} alone. Name a source with that split, or a set "
        "without splits, which is then divided by val_fraction."
    )


def _as_reader(data: Any) -> Any:
    return data if isinstance(data, Reader) else DatasetReader(data)


def _whole(path: Path) -> Any:
    """Return the reader of a folder of classes, of a tar, or of a folder of tars."""
    if path.suffix.lower() == ".tar" and path.is_file():
        return _open_tar(path)
    if path.is_dir() and any(each.suffix.lower() == ".tar" for each in path.iterdir()):
        return _open_tar(path)
    return FolderReader(path)


def _open_tar(path: Path) -> TarReader:
    import tarfile

    try:
        reader = TarReader(str(path))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"Expected a whole tar, but got {str(path)!r} ({error}). Copy or make it again.") from error
    except ValueError as error:
        raise FileNotFoundError(f"Expected a tar with images, but got {str(path)!r}, which holds none.") from error
    return reader


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folders or tars of the splits, where there are both of training and of evaluation or either."""
    found = {}
    for each in sorted(path.iterdir()):
        name = _one_name(each.stem if each.suffix.lower() == ".tar" else each.name)
        if name in SPLITS and (each.is_dir() or each.suffix.lower() == ".tar"):
            found[name] = each
    return found if {"train", "val"} & found.keys() else {}


def _by_tar_folders(reader: Any) -> dict[str, np.ndarray] | None:
    """Return which images of a tar lie in which split's folder; None where it has none."""
    if not isinstance(reader, TarReader):
        return None
    tops = [_one_name(Path(reader.filename(number)).parts[0]) for number in range(len(reader))]
    found = {name: np.array([i for i, top in enumerate(tops) if top == name]) for name in SPLITS if name in tops}
    return found if {"train", "val"} & found.keys() else None


def _group(pattern: str, path: str) -> str | None:
    found = re.search(pattern, path)
    return None if found is None else found[1]


def _recorded(file: Path, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the division that was written before."""
    import csv

    with open(file, newline="", encoding="utf-8") as opened:
        sides = {row["path"]: row["split"] for row in csv.DictReader(opened)}
    if unknown := [path for path in paths if path not in sides]:
        raise ValueError(
            f"Expected split_file to list every image, but got {str(file)!r}, which lacks {len(unknown)} of "
            f"{len(paths)}, such as {unknown[0]!r}. Divide anew into another file."
        )
    split = np.array([sides[path] for path in paths])
    return np.flatnonzero(split == "train"), np.flatnonzero(split == "val")

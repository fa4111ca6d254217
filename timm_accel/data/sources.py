"""Describe where images come from, and open a timm reader for each split."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from timm.data.readers.reader import Reader
from torch.utils.data import IterableDataset

from timm_accel.data.classes import in_label_order, is_multi_label, labels_of
from timm_accel.data.equal_files import equal_images, merged_groups
from timm_accel.data.labels import require_labels
from timm_accel.data.readers.dataset_reader import DatasetReader
from timm_accel.data.readers.hf_reader import is_hf_dataset, open_hf
from timm_accel.data.readers.manifest_folder import is_manifest, split_manifests
from timm_accel.data.readers.manifest_reader import ManifestReader, manifest_columns
from timm_accel.data.readers.reader_views import ReaderPart
from timm_accel.data.readers.tar_reader import tar_splits
from timm_accel.data.splits.excluded_images import without_excluded
from timm_accel.data.splits.folds import split_by_fold
from timm_accel.data.splits.split_folders import open_split, open_unsplit, split_folders
from timm_accel.data.splits.splitting import read_split, split_by_class, split_name, write_split
from timm_accel.messages import missing_extra, one_line

_STREAMS = {  # the extra and the packages of each
    "hfids": ("hf", ("datasets",)),
    "wds": ("wds", ("webdataset",)),
    "tfds": ("tfds", ("tensorflow", "tensorflow_datasets")),
}


@dataclass(frozen=True)
class Source:
    """A source of images and how it is split.

    Args:
        data: A folder, a tar or a folder of tars, a manifest (``.csv``, ``.parquet``) or a folder with one for each
            split, ``torch/NAME``, ``hfds/NAME``; a stream, ``wds/FOLDER``, ``hfids/NAME`` or ``tfds/NAME``; a timm
            `Reader`, a torch `Dataset` of (image, label), a ``datasets.Dataset``; or a mapping of ``train``, ``val``
            and ``test`` to any of these except streams and names, such as a ``datasets.DatasetDict``.
        root: The folder where libraries keep their datasets, or where the paths of a manifest and of ``wds/…`` start.
        download: Whether ``torch/…`` and ``tfds/…`` may download, and whether ``hfids/…`` downloads before it starts.
        val_fraction: The share of a dataset without splits that is for evaluation.
        split_seed: The seed of that split.
        group: A regular expression with one group, which finds in an image's path what must not be on both sides (a
            patient, a module). None uses the column ``group`` of a manifest; without one, each image is its group.
        split_file: The manifest where that split is written, and read from when it exists.
        class_map: The class names of a stream that has none, such as webdataset: a map from name to label, or a file
            with one name a line. None names them '0', '1', ….
        exclude: A CSV whose column ``path`` names images to leave out, such as one from `write_suspects`, except rows
            with the ``kind`` outlier or ambiguous; the split and the folds are the same as with them.
        folds: The number of parts into which the training images are divided for cross-validation; None divides none.
            The other splits of the source are then not used. `split_seed` is the seed of that division too.
        fold: The part, from 1, that is for evaluation; the others are for training.
    """

    data: Any
    root: str | Path | None = None
    download: bool = False
    val_fraction: float = 0.2
    split_seed: int = 0
    group: str | None = None
    split_file: str | Path | None = None
    class_map: str | Path | Mapping[str, int] | None = None
    exclude: str | Path | None = None
    folds: int | None = None
    fold: int | None = None
    _divided: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _opened: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def open(self, split: str) -> Any:
        """Return the reader of a split, which is opened once.

        Args:
            split: ``train``, ``val``, ``test`` or a synonym.

        Raises:
            FileNotFoundError: There is no such file or folder, or it holds no images.
            ValueError: There is no such split, or the source is of no known kind.
        """
        split = split_name(split)
        if split not in self._opened:
            self._opened[split] = self._checked(split)
        return self._opened[split]

    def _checked(self, split: str) -> Any:
        if self.group is not None:
            check_group(self.group)
        if self.class_map is not None and str(self.data).partition("/")[0].lower() not in _STREAMS:
            raise ValueError(
                f"Expected class_map beside a stream (wds/, hfids/, tfds/) alone, but got it beside {self.data!r}. "
                "Leave it out: the data have class names."
            )
        found = self._open(split) if self.folds is None else self._open_fold(split)
        return found if self.exclude is None else without_excluded(found, self.exclude, split)

    def _open_fold(self, split: str) -> Any:
        """Return a split of the training images, which are all images of a source without splits."""
        if not self._divided:
            if is_stream(self.data):
                raise ValueError(
                    f"Expected no folds beside the stream {self.data!r}, but got {self.folds}. Leave it out."
                )
            reader = replace(self, folds=None, fold=None)._open(None)
            self._keep(reader, self._drawn(reader))
        return self._kept(split)

    def _open(self, split: str | None) -> Any:
        """Return the reader of a split; for None that of all images, or of ``train`` where there are splits."""
        named = split or "train"
        if isinstance(self.data, Mapping):
            return self._of_mapping(named)
        if not isinstance(self.data, str | Path):
            return self._divide(lambda: _as_reader(self.data), split)
        kind, _, name = str(self.data).partition("/")
        if kind.lower() in ("torch", "hfds", *_STREAMS) and not os.path.exists(self.data):
            return self._of_library(kind.lower(), name, named)
        return self._of_path(Path(self.data), split)

    def _of_mapping(self, split: str) -> Any:
        parts = {split_name(name): part for name, part in self.data.items()}
        if split not in parts:
            raise _missing(split, sorted(parts), "the mapping")
        part = parts[split]
        if is_hf_dataset(part):
            return open_hf({name: each for name, each in parts.items() if is_hf_dataset(each)}, split, "the mapping")
        if not isinstance(part, str | Path):
            return _as_reader(part)
        if is_manifest(part):
            return self._of_manifests(parts, split)
        return open_unsplit(Path(part))

    def _of_manifests(self, parts: Mapping[str, Any], split: str) -> ManifestReader:
        """Return the manifest of a split; the classes are those of the manifests of all splits."""
        others = [part for name, part in parts.items() if name != split and is_manifest(part)]
        return ManifestReader(parts[split], root=self.root, others=others)

    def _of_library(self, kind: str, name: str, split: str) -> Any:
        if kind in _STREAMS:
            return self._of_stream(kind, name, split)
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
                    f"Expected torch/NAME with a dataset that timm knows, but got {self.data!r} ({error}). Such as "
                    "'torch/cifar10', 'torch/mnist', 'torch/fashion_mnist', 'torch/imagenet'."
                ) from error
        try:
            from datasets import load_dataset
        except ModuleNotFoundError as error:
            raise missing_extra("hf", repr(self.data), error.name) from error
        try:
            parts = load_dataset(name, cache_dir=self.root and str(self.root))
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"Expected hfds/NAME with a Hugging Face dataset or a local folder, but got {name!r} "
                f"({one_line(error)}). Correct the name."
            ) from error
        found = [each for each in parts if split_name(each) == split]
        if not found:
            raise _missing(split, list(parts), repr(self.data))
        return open_hf(parts, found[0], str(self.data))

    def _of_stream(self, kind: str, name: str, split: str) -> Any:
        splitting = {name: getattr(self, name) for name in ("val_fraction", "group", "split_file")}
        given = [name for name, value in splitting.items() if value != type(self).__dataclass_fields__[name].default]
        if given:
            raise ValueError(
                f"Expected no {given[0]} beside {self.data!r}, since a stream is read from front to back and not "
                f"split, but got {splitting[given[0]]!r}. Leave it out, or use a source that is no stream."
            )
        extra, packages = _STREAMS[kind]
        if missing := [package for package in packages if find_spec(package) is None]:
            raise missing_extra(extra, repr(self.data), missing[0])
        root = None if self.root is None else str(self.root)
        if kind == "wds":
            from timm_accel.data.streams.wds import open_wds

            return open_wds(os.path.join(root or "", name), split, self.class_map)
        if kind == "hfids":
            from timm_accel.data.streams.hfids import open_hfids

            return open_hfids(name, split, root, self.download, self.class_map)
        from timm_accel.data.streams.tfds import open_tfds

        return open_tfds(name, split, root, self.download, self.class_map)

    def _of_path(self, path: Path, split: str | None) -> Any:
        named = split or "train"
        if re.search(r"\.(tar\.\w+|tgz)$", path.name):
            raise ValueError(
                f"Expected a plain tar, since images are read from any place in it, but got {str(path)!r}. Unpack the "
                "compression: gunzip FILE.tar.gz."
            )
        if is_manifest(path):
            return self._of_manifest(path, split)
        if manifests := split_manifests(path):
            if named not in manifests:
                raise _missing(named, sorted(manifests), repr(str(path)))
            return self._of_manifests(manifests, named)
        if path.is_dir() and (folders := split_folders(path)):
            if named not in folders:
                raise _missing(named, sorted(folders), repr(str(next(iter(folders.values())).parent)))
            return open_split(named, folders)
        return self._divide(lambda: open_unsplit(path), split)

    def _of_manifest(self, path: Path, split: str | None) -> Any:
        if "split" in manifest_columns(path):
            return ManifestReader(path, split=split or "train", root=self.root)
        return self._divide(lambda: ManifestReader(path, root=self.root), split)

    def _divide(self, open_reader: Callable[[], Any], split: str | None) -> Any:
        """Return a split of a dataset without splits, or of a tar with folders for them; open and split it once."""
        if not self._divided:
            reader = open_reader()
            parts = tar_splits(reader)
            if parts is None and split is None:
                return reader
            self._keep(reader, parts or self._drawn(reader))
        return self._kept(split or "train")

    def _keep(self, reader: Any, parts: Mapping[str, np.ndarray]) -> None:
        self._divided.update({name: ReaderPart(reader, numbers) for name, numbers in parts.items()})

    def _kept(self, split: str) -> Any:
        if split not in self._divided:
            raise _missing(split, sorted(self._divided), "the data")
        return self._divided[split]

    def _drawn(self, reader: Any) -> dict[str, np.ndarray]:
        paths = [reader.filename(number) for number in range(len(reader))]
        labels, names = labels_of(reader), in_label_order(reader.class_to_idx)
        if self.split_file is not None and Path(self.split_file).exists():
            return dict(zip(("train", "val"), read_split(self.split_file, paths), strict=True))
        if not paths:
            raise ValueError("Expected data to hold images, but got none. Pass a dataset that is not empty.")
        require_labels(labels, reader.filename)
        groups = getattr(reader, "groups", None) if self.group is None else [_group(self.group, path) for path in paths]
        unit = "different image" if groups is None else "group"
        if (equal := equal_images(reader)) is not None and (groups is None or None not in groups):
            groups = merged_groups(groups, equal)  # equal images are on one side
        strata = np.zeros(len(labels), dtype=int) if is_multi_label(reader) else labels
        if self.folds is None:
            train, val = split_by_class(strata, self.val_fraction, self.split_seed, groups, names, unit)
        else:
            assert self.fold
            train, val = split_by_fold(strata, self.folds, self.fold, self.split_seed, groups, names, unit)
        if self.split_file is not None:
            words = [[names[label] for label in np.atleast_1d(each)] for each in labels]
            rows = {side: [(paths[i], words[i]) for i in numbers] for side, numbers in (("train", train), ("val", val))}
            write_split(self.split_file, rows)
        return {"train": train, "val": val}


def is_stream(data: Any) -> bool:
    """Return whether a source is a stream by its name: ``wds/…``, ``hfids/…`` or ``tfds/…``.

    Args:
        data: The `data` of a `Source`.
    """
    kind, slash, _ = str(data).partition("/")
    return bool(slash) and kind.lower() in _STREAMS and isinstance(data, str | Path) and not os.path.exists(data)


def _missing(split: str, known: Sequence[str], where: str) -> ValueError:
    others = " or ".join(repr(name) for name in known if name != "train")
    remedy = f"Pass eval_split={others}, or name" if split != "train" and others else "Name"
    return ValueError(
        f"Expected a split {split!r} in {where}, but got {list(known)} alone. {remedy} a source with that split, or "
        "one without splits, which val_fraction then splits."
    )


def _as_reader(data: Any) -> Any:
    """Return the reader of a dataset in memory."""
    if isinstance(data, Reader):
        return data
    if is_hf_dataset(data):
        return open_hf({"data": data}, "data", type(data).__name__)
    is_indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping)
    if isinstance(data, IterableDataset) or not is_indexed:
        raise TypeError(
            "Expected data to be a path, a name such as 'torch/mnist', a Reader, a dataset with indices, or a mapping "
            f"of splits to these, but got {type(data).__name__}. Collect its samples in a list, or use a stream such "
            "as hfids/NAME."
        )
    return DatasetReader(data)


def check_group(group: str) -> None:
    """Raise a `ValueError` for a `group` of `Source` that is no regular expression with one group."""
    try:
        count = re.compile(group).groups
    except re.error as error:
        raise ValueError(
            f"Expected group to be a regular expression, but got {group!r} ({error}). Such as r'(patient\\d+)'."
        ) from error
    if count != 1:
        raise ValueError(
            f"Expected group to be a regular expression with one group in parentheses, but got {group!r} with {count}. "
            "Such as r'(patient\\d+)'."
        )


def _group(pattern: str, path: str) -> str | None:
    found = re.search(pattern, path)
    return None if found is None else found[1]

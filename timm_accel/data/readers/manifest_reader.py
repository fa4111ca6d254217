"""Read images that a table lists with their labels, and optionally with their split and group."""

import csv
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder

from timm_accel.data.classes import class_name
from timm_accel.data.labels import UNLABELED
from timm_accel.data.readers.filename_reader import check_classes, number_classes
from timm_accel.data.readers.regular_files import FolderListing, check_regular, is_special
from timm_accel.data.splits.splitting import SPLITS, misspelled_split, split_name
from timm_accel.messages import missing_extra, one_line
from timm_accel.text_files import unescaped

MANIFESTS = (".csv", ".parquet", ".pq")
"""The endings of the names of manifests."""
_logger = logging.getLogger(__name__)


class ManifestReader(ReaderImageFolder):
    """Read the images that a CSV or parquet file lists in the columns ``path`` and ``label``.

    A CSV is UTF-8 text with commas and names its columns in the first row. The columns ``split`` and ``group`` are
    optional, and others are ignored. Labels are text, even if they are numbers: the classes are numbered in natural
    order over all rows of the file, so its splits agree. If any row has more than one label, separated by ``;``, or the
    column of a parquet file holds lists, the file is multi-label: every target is a list of numbers, for
    ``target_transform=timm.data.MultiLabelTarget(len(reader.class_to_idx))`` of timm's ``ImageDataset``. An empty cell
    is then an image without any class. If no row that is read has a label, all labels are -1, or empty lists.

    Every image of the split must exist; the check lists each folder once.

    Args:
        path: The file; its name ends in ``.csv``, ``.parquet`` or ``.pq``.
        split: The rows to read, by their column ``split``; None for all. ``train`` and ``training`` are the same, and
            so are ``val``, ``valid``, ``validation``, ``eval`` and ``evaluation``, in upper and lower case.
        root: The folder that relative paths start from; None for that of the file.
        class_to_idx: The number of each class, such as another reader's ``class_to_idx``; None to number the labels
            that occur.
        others: Further manifests of the same dataset, such as those of its other splits; their labels are classes too.

    Attributes:
        class_to_idx: The number of each class.
        labels: The target of each image: a number, or a list of them.
        groups: The text in the column ``group`` of each image, None where it is empty; None without the column.

    Raises:
        FileNotFoundError: `path` or `root` is missing, or images are.
        ModuleNotFoundError: The file is a parquet file, and the extra ``parquet`` is not installed.
        TypeError: `class_to_idx` is not a map from text.
        ValueError: The file cannot be read, is empty, lacks a column or the split, or has a row without path or label,
            with a label that is not in `class_to_idx`, or with a split that is misspelled.

    Source: ``timm.data.dataset_factory`` (the synonyms of splits).
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        root: str | Path | None = None,
        class_to_idx: Mapping[str, int] | None = None,
        others: Sequence[str | Path] = (),
    ) -> None:
        Reader.__init__(self)  # not that of ReaderImageFolder, which searches a folder
        columns, rows = _read(path)
        read = [rows, *(_read(other, needs_label=False)[1] for other in others)]
        dataset_rows = _without_minus_one([row for part in read for row in part])
        rows = dataset_rows[: len(rows)]
        chosen = rows if split is None else _rows_of(split, rows, columns, path)
        multi_label = any(row.is_multi_label for row in dataset_rows)
        is_unlabeled = not any(row.labels for row in chosen)
        _check_filled(chosen, path, may_lack_labels=multi_label or is_unlabeled)
        if class_to_idx is None:
            class_to_idx = number_classes(label for row in dataset_rows for label in row.labels if label)
        check_classes(((label, f"row {row.number}") for row in chosen for label in row.labels), class_to_idx)
        self.class_to_idx = {class_name(name): number for name, number in class_to_idx.items()}
        self.root = os.path.abspath(Path(path).parent if root is None else root)
        paths = self._existing([row.path for row in chosen])
        targets = [[self.class_to_idx[class_name(label)] for label in row.labels] for row in chosen]
        self.labels: list[int] | list[list[int]] = (
            targets if multi_label else [UNLABELED if is_unlabeled else target[0] for target in targets]
        )
        self.groups = [row.group or None for row in chosen] if "group" in columns else None
        self.samples = list(zip(paths, self.labels, strict=True))

    def __getitem__(self, index: int) -> Any:
        check_regular(self.samples[index][0])
        return super().__getitem__(index)

    def _existing(self, cells: list[str]) -> list[str]:
        """Return the file of each cell; all of them exist."""
        if not os.path.isdir(self.root):
            raise FileNotFoundError(
                f"Expected root to be a folder, but got {self.root!r}, which is not one. Correct the path."
            )
        exists = FolderListing().exists
        spelled = [[os.path.join(self.root, text) for text in _spellings(cell)] for cell in cells]
        paths = [next(filter(exists, paths), paths[-1]) for paths in spelled]
        if missing := [path for path in paths if not exists(path)]:
            first = ", ".join(repr(path) for path in missing[:3])
            remedy = "Write / for \\ in its paths" if os.sep not in "\\" and "\\" in missing[0] else "Correct its paths"
            special = " (a pipe or a device is no image)" if any(map(is_special, missing)) else ""
            raise FileNotFoundError(
                f"Expected the images of the manifest to exist, but got {len(missing)} of {len(paths)} that do not: "
                f"{first}{', …' if len(missing) > 3 else ''}{special}. {remedy}, or pass the root that they "
                "start from."
            )
        return paths


def manifest_columns(path: str | Path) -> list[str]:
    """Return the names of a manifest's columns.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It cannot be read, is empty, or lacks a column.
    """
    return _read(path, needs_label=False)[0]


def manifest_splits(path: str | Path) -> list[str]:
    """Return the names of a manifest's splits, ``train`` first; none where it has no column ``split``.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It cannot be read, is empty, or lacks a column.
    """
    names = {split_name(row.split) for row in _read(path)[1]} - {""}
    return sorted(names, key=lambda name: (name != "train", name))


def import_pyarrow(purpose: str = ".parquet files", otherwise: str = "") -> Any:
    """Return pyarrow with its module ``parquet``.

    Args:
        purpose: What needs it, for the message.
        otherwise: Another remedy, for the message.

    Raises:
        ModuleNotFoundError: The extra ``parquet`` is not installed.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise missing_extra("parquet", purpose, error.name, otherwise) from error
    return pyarrow


class _Row(NamedTuple):
    number: int  # as a spreadsheet counts: the first image is in row 2 of a CSV, in row 1 of a parquet file
    path: str
    labels: list[str]
    is_multi_label: bool
    split: str
    group: str


def _row(number: int, cells: Mapping[str, Any]) -> _Row:
    split, group = (unescaped((cells.get(name) or "").strip()) for name in ("split", "group"))
    cell = cells.get("label")
    parts: list[Any] = cell if isinstance(cell, list) else cell.split(";") if cell and cell.strip() else []
    labels = [unescaped((part or "").strip()) for part in parts]
    return _Row(number, cells.get("path") or "", labels, isinstance(cell, list) or len(labels) > 1, split, group)


_COLUMNS = ("path", "label", "split", "group")


def _read(path: str | Path, needs_label: bool = True) -> tuple[list[str], list[_Row]]:
    """Return the names of the columns, and the rows."""
    ending = Path(path).suffix.lower()
    if ending not in MANIFESTS:
        raise ValueError(
            f"Expected path to be a manifest that ends in .csv, .parquet or .pq, but got {str(path)!r}. Save it as one."
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"Expected path to be a manifest, but got {str(path)!r}, which is not a file. Correct the path."
        )
    columns, rows = _read_csv(path) if ending == ".csv" else _read_parquet(path)
    if columns and not (columns.count("path") == 1 and columns.count("label") in ((1,) if needs_label else (0, 1))):
        raise ValueError(
            f"Expected the manifest to have a column 'path' and a column 'label', but got {str(path)!r} with "
            f"{columns}. Name its columns; in a CSV the first row does, with commas."
        )
    if not rows:
        raise ValueError(
            f"Expected the manifest to list images, but got {str(path)!r}, which has no rows. Name the columns 'path' "
            "and 'label' and write a row for each image."
        )
    return columns, rows


def _read_csv(path: str | Path) -> tuple[list[str], list[_Row]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(filter(None, table), [])]
            return columns, [_row(table.line_num, dict(zip(columns, cells, strict=False))) for cells in table if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"Expected the manifest to be a CSV in UTF-8, but got {str(path)!r} ({error}). Save it as one."
        ) from error


def _read_parquet(path: str | Path) -> tuple[list[str], list[_Row]]:
    pyarrow = import_pyarrow(repr(str(path)), ", or save the manifest as a CSV")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            table = file.read([name for name in _COLUMNS if name in columns])
        texts = {
            name: _texts(pyarrow, column, name == "label")
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    except (ValueError, NotImplementedError) as error:  # pyarrow's errors are subclasses of these
        raise ValueError(
            f"Expected the manifest to be a parquet file of texts and numbers, but got {str(path)!r} "
            f"({one_line(error)}). Save it as one."
        ) from error
    cells = zip(*texts.values(), strict=True)
    return columns, [_row(number, dict(zip(texts, row, strict=True))) for number, row in enumerate(cells, start=1)]


def _texts(pyarrow: Any, column: Any, may_be_lists: bool) -> list[Any]:
    """Return the cells of a column as texts, or as lists of them; a null is an empty list there."""
    kinds = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    if not (may_be_lists and any(is_kind(column.type) for is_kind in kinds)):
        return column.cast("string").to_pylist()
    return [each or [] for each in column.cast(pyarrow.list_(pyarrow.string())).to_pylist()]


def _rows_of(split: str, rows: list[_Row], columns: list[str], path: str | Path) -> list[_Row]:
    if "split" not in columns:
        raise ValueError(
            f"Expected the manifest to have a column 'split', since split is {split!r}, but got {str(path)!r} with "
            f"{columns}. Add the column, or leave split out to read every row."
        )
    if without := [row.number for row in rows if not row.split]:
        raise ValueError(
            f"Expected every row to have a split, but got {len(without)} of {str(path)!r} that have none, row "
            f"{without[0]} first. Fill them in."
        )
    wanted = split_name(split)
    _check_splits(rows, wanted, path)
    chosen = [row for row in rows if split_name(row.split) == wanted]
    if not chosen:
        known = ", ".join(repr(name) for name in sorted({row.split for row in rows}))
        raise ValueError(
            f"Expected split to be one that {str(path)!r} has, {known}, but got {split!r}. Pass one of them."
        )
    return chosen


def _check_splits(rows: list[_Row], wanted: str, path: str | Path) -> None:
    """Raise an error for a misspelled split; log other names that are no split of training, if that is read."""
    named = {row.split: row.number for row in reversed(rows) if split_name(row.split) not in {*SPLITS, wanted}}
    for name, number in named.items():
        if meant := misspelled_split(name):
            raise ValueError(
                f"Expected every row to have a split such as 'train', 'val' or 'test', but got {name!r} in row "
                f"{number} of {str(path)!r}. Did you mean {meant!r}? Correct it."
            )
    if named and wanted == "train":
        count = sum(row.split in named for row in rows)
        _logger.warning("%d of %d rows of %r have a split of another name: %s.", count, len(rows), str(path), [*named])


def _without_minus_one(rows: list[_Row]) -> list[_Row]:
    """Return the rows without a label where it is -1 and all labels are integers: test splits are published so."""
    if not all(re.fullmatch(r"-1|\d+", label) for row in rows for label in row.labels):
        return rows
    return [row._replace(labels=[]) if row.labels == [str(UNLABELED)] else row for row in rows]


def _check_filled(rows: list[_Row], path: str | Path, may_lack_labels: bool) -> None:
    for row in rows:
        has_labels = all(row.labels) and bool(row.labels or may_lack_labels)
        for column, filled in (("path", row.path.strip()), ("label", has_labels)):
            if not filled:
                raise ValueError(
                    f"Expected every row to have a path and a label, but got an empty {column} in row {row.number} of "
                    f"{str(path)!r}. Fill it in, or remove the row. A label -1 among numbers counts as empty."
                )


def _spellings(cell: str) -> dict[str, None]:
    """Return the paths that a cell may mean, in order: spaces at its ends may belong to it, and it may be escaped."""
    texts = (cell, cell.strip())
    return dict.fromkeys([*map(unescaped, texts), *texts])

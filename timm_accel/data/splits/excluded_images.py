"""Leave out the images that a CSV file names."""

import csv
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from timm_accel.data.readers.reader_views import ReaderPart
from timm_accel.data.readers.regular_files import check_regular
from timm_accel.messages import counted, one_line
from timm_accel.text_files import read_csv

_logger = logging.getLogger(__name__)

STAY = ("outlier", "ambiguous")
"""Kinds of suspect images that stay, since most of them have the right label."""


def without_excluded(reader: Any, path: str | Path, split: str) -> Any:
    """Return a reader without the images that a file names.

    Args:
        reader: The reader of a split.
        path: A CSV file with the column ``path``: paths as the reader has them, or absolute ones. Rows whose column
            ``kind`` is ``outlier`` or ``ambiguous`` exclude nothing.
        split: The split, for the messages; ``train`` must have one of the images.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no such CSV, it names no training image, it leaves none, or the images are a stream.
    """
    if hasattr(reader, "share"):
        raise ValueError(
            f"Expected no exclude beside a stream, which names no images, but got {str(path)!r}. Leave it out, or use "
            "a source that is no stream."
        )
    if not Path(path).exists():
        raise FileNotFoundError(f"Expected exclude to be a CSV file, but got {str(path)!r}, which does not exist.")
    check_regular(path)
    try:
        rows = [(row["path"], row.get("kind") or "") for row in read_csv(path)]
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise ValueError(
            f"Expected exclude to be a CSV in UTF-8 with the column path, but got {str(path)!r} ({one_line(error)}). "
            "Write one with write_suspects."
        ) from error
    kinds = dict(sorted(rows, key=lambda row: row[1] not in STAY))  # of two rows of an image, the one that excludes it
    found = [
        kinds.get(reader.filename(number), kinds.get(reader.filename(number, absolute=True)))
        for number in range(len(reader))
    ]
    kept = np.array([number for number, kind in enumerate(found) if kind is None or kind in STAY], dtype=np.int64)
    num_of = Counter(found)
    is_named = num_of[None] < len(reader)
    if (kinds and split == "train" and not is_named) or len(kept) == 0:
        raise ValueError(
            f"Expected exclude to name some of the {len(reader):,} images of {split}, but got {str(path)!r} with "
            f"{'all' if is_named else 'none'} of them. Compare its paths with those of the data."
        )
    if is_named:
        stay = " and ".join(counted(num_of[kind], f"{kind} image") for kind in STAY if num_of[kind])
        more = f", and keeps {stay}: empty their kind to leave them out too" if stay else ""
        left_out = counted(len(reader) - len(kept), "image")
        _logger.warning("%r leaves out %s of %s%s.", str(path), left_out, split, more)
    return ReaderPart(reader, kept) if len(kept) < len(reader) else reader

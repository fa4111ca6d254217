"""Leave out the images that a CSV file names."""

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np

from timm_accel.data.readers.reader_views import ReaderPart
from timm_accel.data.readers.regular_files import check_regular
from timm_accel.messages import counted, one_line
from timm_accel.text_files import read_csv

_logger = logging.getLogger(__name__)


def without_excluded(reader: Any, path: str | Path, split: str) -> Any:
    """Return a reader without the images that a file names.

    Args:
        reader: The reader of a split.
        path: A CSV file with the column ``path``: paths as the reader has them, or absolute ones.
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
        excluded = {row["path"] for row in read_csv(path)}
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise ValueError(
            f"Expected exclude to be a CSV in UTF-8 with the column path, but got {str(path)!r} ({one_line(error)}). "
            "Write one with write_suspects."
        ) from error
    kept = np.array(
        [
            number
            for number in range(len(reader))
            if not {reader.filename(number), reader.filename(number, absolute=True)} & excluded
        ],
        dtype=np.int64,
    )
    left_out = len(reader) - len(kept)
    if (left_out == 0 and split == "train" and excluded) or len(kept) == 0:
        found = "none of them" if left_out == 0 else "all of them"
        raise ValueError(
            f"Expected exclude to name some of the {len(reader):,} images of {split}, but got {str(path)!r} with "
            f"{found}. Compare its paths with those of the data."
        )
    if left_out:
        _logger.warning("%s of %s left out, since %r names them.", counted(left_out, "image"), split, str(path))
    return ReaderPart(reader, kept) if left_out else reader

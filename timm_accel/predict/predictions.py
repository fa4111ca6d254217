"""What a classifier says of each image, and the files that it is written to."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timm_accel.atomic import atomic_write
from timm_accel.data.readers.manifest_reader import import_pyarrow
from timm_accel.messages import nearest


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image.

    Args:
        path: Its file; None for an image from memory.
        labels: The names, the likeliest first; none where the image could not be read.
        scores: Their probabilities.
        error: Why it could not be read; None where it could.
    """

    path: str | None
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None


def exit_code(predictions: Sequence[Prediction]) -> int:
    """Return 1 when an image could not be read, else 0: for ``sys.exit`` of a script."""
    return int(any(prediction.error is not None for prediction in predictions))


def write_predictions(predictions: Sequence[Prediction], path: str | Path) -> None:
    """Write predictions to a file, which is there whole or not at all.

    Args:
        predictions: What `Classifier.predict` returned.
        path: ``.json``: a list of objects; ``.parquet``: a row each, with lists of labels and scores; ``.csv``: a row
            each, with columns path, label_1, score_1, label_2, …, error.

    Raises:
        ModuleNotFoundError: ``.parquet`` without the extra ``parquet``.
        OSError: Nothing can be written there.
        ValueError: The suffix is another.
    """
    writers = {".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet}
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise ValueError(
            f"Expected path to end in {', '.join(writers)}, but got {str(path)!r}. {nearest(suffix, writers)}"
        )
    with atomic_write(path) as unfinished:
        writers[suffix]([asdict(prediction) for prediction in predictions], unfinished)


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    most = max((len(row["labels"]) for row in rows), default=0)
    columns = [f"{name}_{number}" for number in range(1, most + 1) for name in ("label", "score")]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", *columns, "error"])
        writer.writeheader()
        for row in rows:
            pairs = zip(row["labels"], row["scores"], strict=True)
            cells = dict(zip(columns, (value for pair in pairs for value in pair), strict=False))
            writer.writerow({"path": row["path"], **cells, "error": row["error"]})


def _write_json(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    pyarrow = import_pyarrow()
    texts, numbers = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
    kinds = {"path": pyarrow.string(), "labels": texts, "scores": numbers, "error": pyarrow.string()}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(kinds)), path)

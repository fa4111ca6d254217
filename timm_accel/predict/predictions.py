"""The predictions of a classifier, and the files that they are written to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timm_accel.atomic import atomic_write
from timm_accel.data.readers.manifest_reader import import_pyarrow
from timm_accel.messages import nearest
from timm_accel.text_files import escaped, write_csv, write_json


@dataclass(frozen=True)
class Prediction:
    """The top-k predictions of an image.

    Args:
        path: The file of the image; None for an image in memory.
        labels: The class names, the highest score first; empty if the image could not be read.
        scores: The probabilities of these classes.
        error: The error of an image that could not be read; None otherwise.
    """

    path: str | None
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None


def exit_code(predictions: Sequence[Prediction]) -> int:
    """Return 1 if an image could not be read, otherwise 0, for ``sys.exit`` of a script."""
    return int(any(prediction.error is not None for prediction in predictions))


def write_predictions(predictions: Sequence[Prediction], path: str | Path) -> None:
    """Write predictions to a file, atomically.

    Args:
        predictions: Predictions from `Classifier.predict`.
        path: A ``.json`` file is a list of objects. A ``.parquet`` file has a row for each image, with lists of labels
            and scores. A ``.csv`` file has a row for each image, with columns path, label_1, score_1, label_2, …,
            error. Names that are not UTF-8 are escaped as in `timm_accel.text_files`.

    Raises:
        ModuleNotFoundError: The extra ``parquet`` is not installed for a ``.parquet`` file.
        OSError: Nothing can be written there.
        ValueError: The suffix is unknown.
    """
    writers = {".csv": _write_csv, ".json": write_json, ".parquet": _write_parquet}
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise ValueError(
            f"Expected path to end in {', '.join(writers)}, but got {str(path)!r}. {nearest(suffix, writers)}"
        )
    writers[suffix](path, [asdict(prediction) for prediction in predictions])


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    max_labels = max((len(row["labels"]) for row in rows), default=0)
    columns = [f"{name}_{number}" for number in range(1, max_labels + 1) for name in ("label", "score")]
    lines = []
    for row in rows:
        cells = [value for pair in zip(row["labels"], row["scores"], strict=True) for value in pair]
        lines.append([row["path"], *cells, *[None] * (len(columns) - len(cells)), row["error"]])
    write_csv(path, [["path", *columns, "error"], *lines])


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = import_pyarrow()
    texts, numbers = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
    kinds = {"path": pyarrow.string(), "labels": texts, "scores": numbers, "error": pyarrow.string()}
    table = pyarrow.Table.from_pylist([_escaped(row) for row in rows], schema=pyarrow.schema(kinds))
    with atomic_write(path) as unfinished:
        pyarrow.parquet.write_table(table, unfinished)


def _escaped(row: dict[str, Any]) -> dict[str, Any]:
    path, error = (value and escaped(value) for value in (row["path"], row["error"]))
    return row | {"path": path, "labels": [escaped(label) for label in row["labels"]], "error": error}

"""Write the page."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from timm_accel.atomic import atomic_write, check_writable
from timm_accel.data.resources import check_loader_options
from timm_accel.messages import nearest_path, printable
from timm_accel.models.opening import best_folders
from timm_accel.report.comparison import Comparison, comparison_of
from timm_accel.report.cross_validation import CrossValidated, cross_validated, folds_of
from timm_accel.report.page import Page, page_of

NAME = "report.html"
MAX_MATRIX = 30
PACKAGES = ("timm_accel", "timm", "torch", "torchvision", "pytorch-accelerated", "accelerate", "torchmetrics")


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    data: Any = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Path:
    """Write a page about a run, or about several side by side, as one HTML file that opens offline.

    Of one run it shows the curves, the metrics and the mistakes of its best weights on the evaluation images, training
    images as the model sees them, the options, and how to load the model. Of several runs it shows their curves and
    metrics, and the options in which they differ. Of a cross-validation it also shows the mean and the deviation of the
    metrics, and the suspect images with thumbnails. A run that is not finished, or whose data are gone, is shown as far
    as it can be, and the page says what is missing, and which runs do not compare.

    Args:
        runs: The folder of a run, or of several, or of a cross-validation.
        out: The file; None for ``report.html`` in the folder of the run, or of the first run.
        data: The labeled images to evaluate on, as for `evaluate_classifier`; None for those of the recipe.
        batch_size: Images at a time.
        num_workers: Loader processes.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no such run, or it has neither a history nor weights.
        OSError: The file cannot be written.
        ValueError: `runs` is empty or names a run twice, or the runs share no metric, or only some are multi-label.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if not folders:
        raise ValueError("Expected runs to be at least one run, but got none. Name the folder of a run.")
    for folder in folders:
        _check_run(folder)
    check_loader_options(batch_size, num_workers)
    path = folders[0] / NAME if out is None else Path(out)
    check_writable(path)
    if len(folders) == 1 and (folds := folds_of(folders[0])):
        write_page(path, comparison=comparison_of(folds), cross_validated=cross_validated(folders[0]))
    elif len(folders) == 1:
        write_page(path, page=page_of(folders[0], data, batch_size=batch_size, num_workers=num_workers))
    else:
        write_page(path, comparison=comparison_of(folders))
    return path


def write_page(
    path: Path,
    *,
    page: Page | None = None,
    comparison: Comparison | None = None,
    cross_validated: CrossValidated | None = None,
) -> None:
    """Write a page.

    Args:
        path: The file.
        page: What it shows of one run.
        comparison: What it shows of several runs, in place of `page`.
        cross_validated: What it shows of their cross-validation.

    Raises:
        OSError: The file cannot be written.
    """
    versions = {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    template = _environment().get_template("report.html.j2")
    shown = {"page": page, "comparison": comparison, "cross_validated": cross_validated}
    text = template.render(**shown, max_matrix=MAX_MATRIX, versions=versions)
    with atomic_write(path) as unfinished:
        unfinished.write_text(text.encode("utf-8", "backslashreplace").decode(), encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("timm_accel.report"),
        autoescape=select_autoescape(["html", "j2"], default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda value: printable(str(value))
    return environment


def _check_run(folder: Path) -> None:
    if not folder.is_dir():
        remedy = nearest_path(folder, "Correct the path.")
        raise FileNotFoundError(
            f"Expected runs to be folders of runs, but got {str(folder)!r}, which is none. {remedy}"
        )
    if not (folder / "history.csv").is_file() and not best_folders(folder) and not folds_of(folder):
        raise FileNotFoundError(
            f"Expected a run with a history or weights, but got {str(folder)!r} without both. Wait for its first "
            "epoch, or name another folder."
        )

"""The files and runs that the commands are given: what is written, checked before the work, and runs in progress."""

import sys
from collections.abc import Collection
from pathlib import Path

from timm_accel.atomic import check_writable
from timm_accel.messages import missing_extra, nearest
from timm_accel.states.run_dir import holder_of_run
from timm_accel.terminal import print_fitted
from timm_accel.text_files import escaped


def check_out(out: str | None, suffixes: Collection[str]) -> None:
    """Raise before the work if its result cannot be written.

    Args:
        out: The file; None for none.
        suffixes: The known endings, in lower case.

    Raises:
        OSError: Nothing can be written there.
        ValueError: The ending is unknown.
    """
    if out is None:
        return
    if (suffix := Path(out).suffix.lower()) not in suffixes:
        raise ValueError(f"Expected out to end in {', '.join(suffixes)}, but got {out!r}. {nearest(suffix, suffixes)}")
    check_writable(out)


def check_figure(out: str | None, *others: str) -> None:
    """Raise before the work if a figure cannot be drawn or written.

    Args:
        out: The file; None for none.
        *others: Endings of files that are no figures, in lower case.

    Raises:
        ModuleNotFoundError: The extra ``plots`` is not installed.
        OSError: Nothing can be written there.
        ValueError: The ending is no format of figures.
    """
    if out is None or out.lower().endswith(others):
        check_out(out, others)
        return
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError as error:
        raise missing_extra("plots", "figures", error.name) from error
    check_out(out, [*others, *(f".{suffix}" for suffix in FigureCanvasBase.get_supported_filetypes())])


def say_in_progress(path: str) -> None:
    """Print a line if a path is a run in progress, or a folder in one: its best weights may still change.

    Args:
        path: The path of a model.
    """
    folder = Path(path)
    for run in (folder, folder.parent, folder.parent.parent):
        if (holder := holder_of_run(run)) is not None:
            said = f"The run {str(run)!r} is in progress ({holder}): these are its best weights up to now."
            print_fitted(escaped(said), sys.stderr)
            return

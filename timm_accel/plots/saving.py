"""Write a figure to a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: str | Path, **options: Any) -> None:
    """Write a figure to a file, atomically.

    Args:
        figure: A figure of `timm_accel.plots`, or any other of matplotlib.
        path: The file; its suffix is the format.
        **options: Options of ``Figure.savefig``.

    Raises:
        OSError: Nothing can be written there.
        ValueError: matplotlib knows no format of this suffix.

    Source: ``matplotlib.figure.Figure.savefig``.
    """
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, **options)

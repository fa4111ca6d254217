"""A figure of learning curves: what runs recorded in each epoch."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from timm_accel.plots.figures import _new_figure
from timm_accel.plots.text import _drawable, _font_families
from timm_accel.states.history import complete_rows, number_in
from timm_accel.states.speed import COLUMNS
from timm_accel.states.weights import EMA_MODEL, metric_prefix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Curve = tuple[list[float], list[float]]  # epochs and values
PANEL_WIDTH, PANEL_HEIGHT = 3.6, 2.4  # inches
MAX_COLUMNS = 3
MAX_LETTERS = 60  # of the name of a run
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008
_KINDS = {"training": ":", "model": "-", "EMA": "--"}
_NO_METRICS = ("epoch", *COLUMNS)


def plot_history(
    runs: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    *,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure":
    """Draw the learning curves of a run or several: a panel for the loss, for each metric and for the learning rate.

    Training is dotted, the model solid and the EMA model dashed. A run may be unfinished, and runs may differ in length
    and metrics. A resumed run is one curve.

    Args:
        runs: A run folder or its ``history.csv``, or several, also by name.
        figure: The figure to draw into; None for a new figure.

    Raises:
        FileNotFoundError: There is no such run, or it has no history.
        ModuleNotFoundError: The extra ``plots`` is not installed.
        ValueError: `runs` is empty, or a history is no CSV of a run or holds no epoch yet.
    """
    named = _named(runs)
    histories = [_curves(path) for path in named.values()]
    names = _drawable([*named], MAX_LETTERS)
    panels = _panels(histories)
    columns = ceil(len(panels) / ceil(len(panels) / MAX_COLUMNS))
    rows = ceil(len(panels) / columns)
    if figure is None:
        below = 0.25 * (1 + (len(names) if len(names) > 1 else 0))
        figure = _new_figure(columns * PANEL_WIDTH, rows * PANEL_HEIGHT + below)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    from matplotlib.ticker import MaxNLocator  # after `_new_figure`, which names the extra

    for axes, title in zip(cells, panels, strict=False):
        for number, curves in enumerate(histories):
            _draw_panel(axes, curves, title, number if len(named) > 1 else None)
        axes.set_title(title, fontsize=9, parse_math=False, fontfamily=_font_families([title]))
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    for axes in cells[len(panels) :]:
        axes.set_axis_off()
    _add_legend(figure, names, [kind for kind in _KINDS if any(kind == k for each in histories for _, k in each)])
    return cast("Figure", figure.figure)


def _named(runs: Any) -> dict[str, Path]:
    if isinstance(runs, Mapping):
        named = {str(name): Path(run) for name, run in runs.items()}
    else:
        paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
        folders = [(path.parent if path.suffix == ".csv" else path).resolve() for path in paths]
        own = [folder.name for folder in folders]
        named = {name if own.count(name) == 1 else str(path): path for name, path in zip(own, paths, strict=True)}
    if not named:
        raise ValueError("Expected runs to hold at least one run folder, but got none. Pass one, such as 'runs/train'.")
    return named


def _curves(run: Path) -> dict[tuple[str, str], Curve]:
    """Return the curves of a run by the name of their panel and their kind."""
    curves: dict[tuple[str, str], Curve] = {}
    for row in _rows(run):
        for name, cell in row.items():
            value = number_in(cell)
            if value is not None and name not in _NO_METRICS:
                epochs, values = curves.setdefault(_panel_of(name), ([], []))
                epochs.append(float(row["epoch"]))
                values.append(value)
    return curves


def _rows(run: Path) -> list[dict[str, str]]:
    path = run if run.suffix == ".csv" else run / "history.csv"
    if not path.is_file():
        what = "a run whose first epoch is complete" if run.is_dir() else "a run folder"
        raise FileNotFoundError(
            f"Expected runs to be {what}, but {str(path)!r} does not exist. Wait for the first epoch of the run, or "
            "name another folder."
        )
    rows = complete_rows(path)
    if not rows or any(number_in(row.get("epoch", "")) is None for row in rows):
        raise ValueError(
            f"Expected {str(path)!r} to hold a row for each complete epoch of a run, but got "
            f"{'none' if not rows else 'rows without an epoch'}. Wait for the first epoch, or name another run."
        )
    return rows


def _panel_of(name: str) -> tuple[str, str]:
    prefix = metric_prefix(EMA_MODEL)
    kind = "EMA" if name.startswith(prefix) else "model"
    metric = name.removeprefix(prefix).removesuffix("_epoch")
    if metric == "lr":
        return "learning rate", "model"
    if metric.startswith("train_"):
        kind, metric = "training", metric.removeprefix("train_")
    return "loss" if metric == "eval_loss" else metric, kind


def _panels(histories: Iterable[Mapping[tuple[str, str], Curve]]) -> list[str]:
    """Return the titles of the panels: the loss first, the learning rate last."""
    titles = {title: None for history in histories for title, _ in history}
    return sorted(titles, key=lambda title: (title == "learning rate", title != "loss"))


def _draw_panel(axes: "Axes", curves: Mapping[tuple[str, str], Curve], title: str, number: int | None) -> None:
    """Draw the curves of a run in a panel; the kinds have their own colors where there is only one run."""
    for index, (kind, style) in enumerate(_KINDS.items()):
        if (title, kind) in curves:
            epochs, values = curves[title, kind]
            color = _COLORS[(index if number is None else number) % len(_COLORS)]
            marker = "o" if len(epochs) == 1 else None
            axes.plot(epochs, values, style, color=color, marker=marker, markersize=3, linewidth=1.3)


def _add_legend(figure: "Figure | SubFigure", names: Sequence[str], kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    several = len(names) > 1
    lines = [
        Line2D([], [], linestyle=style, color="#555555" if several else _COLORS[index], label=kind)
        for index, (kind, style) in enumerate(_KINDS.items())
        if kind in kinds
    ]
    if several:
        lines += [Line2D([], [], color=_COLORS[number % len(_COLORS)], label=name) for number, name in enumerate(names)]
    font = {"size": 8, "family": _font_families(names)}
    columns = len(kinds) if not several else max(1, min(len(lines), 160 // max(12, *map(len, names))))
    legend = figure.legend(handles=lines, loc="outside lower center", ncols=columns, prop=font, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)

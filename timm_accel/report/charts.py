"""Line charts as points and ticks, which the page draws as SVG."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 360, 220, 52, 34, 10, 12
COLORS = 6
_MAX_POINTS = 500

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line: its name, its points as SVG wants them, its color (an index), and whether it is dashed."""

    name: str
    points: str
    color: int
    is_dashed: bool


@dataclass(frozen=True)
class Chart:
    """A chart: its title, its lines, and the place and text of each tick."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = BOTTOM
    right: int = RIGHT
    top: int = TOP


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    dashed: Sequence[str] = (),
    colors: Mapping[str, int] | None = None,
    x_label: str = "epoch",
    y_range: tuple[float, float] | None = None,
) -> Chart | None:
    """Return a chart; None if no point is finite.

    Args:
        title: The title.
        series: The points (x, y) of each line; those that are not finite are left out.
        dashed: The names of the dashed lines.
        colors: The color of each line, as an index; None for the order of the lines.
        x_label: What x is.
        y_range: The lowest and highest y; None for those of the points.
    """
    lines = {name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)] for name, points in series.items()}
    lines = {name: _thinned(points) for name, points in lines.items() if points}
    if not lines:
        return None
    x_ticks = nice_ticks([x for points in lines.values() for x, _ in points], at_least=1 if x_label == "epoch" else 0)
    y_ticks = nice_ticks(list(y_range) if y_range else [y for points in lines.values() for _, y in points])
    to_x, to_y = _scale(x_ticks, LEFT, WIDTH - RIGHT), _scale(y_ticks, HEIGHT - BOTTOM, TOP)
    order = {name: number for number, name in enumerate(lines)} if colors is None else colors
    texts = {name: " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in points) for name, points in lines.items()}
    return Chart(
        title,
        tuple(Line(name, text, order[name] % COLORS, name in dashed) for name, text in texts.items()),
        tuple((to_x(tick), f"{tick:g}") for tick in x_ticks),
        tuple((to_y(tick), f"{tick:g}") for tick in y_ticks),
        x_label,
    )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // _MAX_POINTS)
    return points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]


def _scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = ticks[0], ticks[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def nice_ticks(values: Sequence[float], count: int = 5, at_least: float = 0.0) -> list[float]:
    """Return about `count` rising round numbers, from at most the smallest to at least the largest value.

    Args:
        values: The values.
        count: The number of steps between ticks, at most.
        at_least: The smallest step.

    >>> nice_ticks([0.13, 0.88])
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = min(values), max(values)
    if high - low <= abs(high) * 1e-12:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    raw = max((high - low) / count, at_least)
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = floor(low / step + 1e-9), -floor(-high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]

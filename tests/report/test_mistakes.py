"""The worst images, the most confident errors, the calibration and the points of a chart, worked out by hand."""

import doctest

import pytest
import torch

from timm_accel.predict import Scores
from timm_accel.predict.scored_images import highest_losses
from timm_accel.report import charts
from timm_accel.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart, nice_ticks
from timm_accel.report.mistakes import calibration_chart, confident_errors

SCORES = Scores(
    ["right", "wrong", "sure", "worst"],
    torch.tensor([0, 0, 0, 1]),
    torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.15, 0.8, 0.05], [0.35, 0.05, 0.6]], dtype=torch.float64),
    ["a", "b", "c"],
    [],
    [],
)


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_the_worst_images_and_the_most_confident_errors_come_first() -> None:
    assert [SCORES.paths[index] for index in highest_losses(SCORES, 3)] == ["worst", "sure", "wrong"]
    assert [SCORES.paths[index] for index in confident_errors(SCORES, 9)] == ["sure", "wrong", "worst"]
    assert [SCORES.paths[index] for index in confident_errors(SCORES, 1)] == ["sure"]


def test_the_calibration_is_the_share_of_right_predictions_by_their_probability() -> None:
    chart = calibration_chart(SCORES)
    assert chart is not None
    model = next(line for line in chart.lines if line.name == "model")
    to_x = lambda value: LEFT + value * (WIDTH - RIGHT - LEFT)  # noqa: E731
    bottom, top = HEIGHT - BOTTOM, TOP
    expected = [(to_x(0.6), bottom), (to_x(0.8), bottom), (to_x(0.9), top)]  # two of 0.6, both wrong
    assert points(model.points) == [pytest.approx(point, abs=0.06) for point in expected]


def test_a_chart_begins_and_ends_at_its_edges() -> None:
    chart = line_chart("accuracy", {"model": [(1, 0.0), (2, 0.25), (6, 1.0)], "none": [(1, float("nan"))]})
    assert chart is not None
    [line] = chart.lines
    first, middle, last = points(line.points)
    assert first == (LEFT, HEIGHT - BOTTOM)
    assert last == (WIDTH - RIGHT, TOP)
    assert middle[1] == pytest.approx(HEIGHT - BOTTOM + (TOP - HEIGHT + BOTTOM) / 4, abs=0.06)
    assert [text for _, text in chart.x_ticks] == ["1", "2", "3", "4", "5", "6"]
    assert line_chart("nothing", {"none": [(1, float("inf"))], "empty": []}) is None


def test_a_long_history_keeps_its_last_point() -> None:
    chart = line_chart("loss", {"model": [(epoch, epoch) for epoch in range(1, 2003)]})
    assert chart is not None
    shown = points(chart.lines[0].points)
    assert len(shown) <= 502
    whole = line_chart("loss", {"model": [(1, 1), (2002, 2002)]})
    assert whole is not None
    assert shown[-1] == points(whole.lines[0].points)[-1]


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [-3.0, 0.5], [1e6, 1e6 + 1], [0.001, 0.002]])
def test_ticks_enclose_the_values(values: list[float]) -> None:
    ticks = nice_ticks(values)
    assert ticks[0] <= min(values)
    assert max(values) <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    assert doctest.testmod(charts).failed == 0

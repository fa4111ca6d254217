"""Figures of learning rates show the right numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from tiny_runs import load_example
from torch import nn
from torch.optim import SGD

from timm_accel.lr_finder import LRRangeTest, _suggest
from timm_accel.plots import plot_lr_finder, plot_schedule
from timm_accel.schedules import simulate_schedule

pytest.importorskip("matplotlib")
LENGTH = {"num_epochs": 4, "updates_per_epoch": 2}


def lines(figure: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
    (axes,) = figure.axes
    return [(line.get_label(), line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]


def test_a_schedule_is_drawn_over_the_epochs() -> None:
    simulated = simulate_schedule({"sched": "cosine"}, lr=0.1, **LENGTH)
    figure = plot_schedule(simulated, title="cosine")
    ((_, epochs, rates),) = lines(figure)
    assert epochs.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert rates.tolist() == simulated.learning_rates[:, 0].tolist()
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("cosine", "epoch", "learning rate")
    assert axes.get_legend() is None


def test_groups_of_one_rate_share_a_line_and_panels_are_named() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, 0.1, 0.3)]
    simulated = simulate_schedule({"sched": "cosine"}, optimizer=SGD(groups), **LENGTH)
    drawn = lines(plot_schedule({"ours": simulated, "theirs": simulate_schedule({"sched": "none"}, lr=0.1, **LENGTH)}))
    assert [label for label, _, _ in drawn] == ["ours, group 0 and 1 more", "ours, group 2", "theirs"]
    for (_, _, rates), expected in zip(
        drawn, (simulated.learning_rates[:, 0], simulated.learning_rates[:, 2], [0.1] * 8), strict=True
    ):
        assert rates.tolist() == list(expected)


def test_a_range_test_is_drawn_with_its_suggestions() -> None:
    rates = np.geomspace(1e-3, 1, 4)
    sweep = LRRangeTest(rates, np.array([3.0, 2, 1, 5]), np.array([3.0, 2.5, 2, 3]), 0.01, 0.02, None)
    drawn = {label: (x, y) for label, x, y in lines(plot_lr_finder(sweep))}
    assert drawn["loss"][1].tolist() == [3, 2, 1, 5]
    assert drawn["smoothed"][1].tolist() == [3, 2.5, 2, 3]
    assert drawn["smoothed"][0].tolist() == rates.tolist()
    assert {label for label in drawn if ":" in label} == {"steepest: 0.01", "minimum / 10: 0.02"}
    assert set(drawn["steepest: 0.01"][0]) == {0.01}


def limits(losses: np.ndarray) -> tuple[float, float]:
    figure = plot_lr_finder(_suggest(np.geomspace(1e-5, 1, len(losses)), losses))
    return figure.axes[0].get_ylim()


SHARE = np.linspace(0, 1, 101)
FALLING = 2.3 - 1.5 * SHARE


@pytest.mark.parametrize("beyond", [20.0, 1e3, 1e30])
@pytest.mark.parametrize("jump", [2.0, 50.0])
def test_a_divergence_and_a_jump_do_not_flatten_the_useful_part(beyond: float, jump: float) -> None:
    losses = np.concatenate([FALLING, np.geomspace(1, beyond, 20)])
    losses[30] = jump
    bottom, top = limits(losses)
    assert 0 < bottom < losses[:101].min()
    assert losses[0] < top < 2.8


@pytest.mark.parametrize("level", [2.3, 0.01, 7e4, -5.0])
def test_a_flat_curve_is_drawn_flat_and_in_the_middle(level: float) -> None:
    noise = 0.01 * abs(level) * np.cos(np.arange(80) * np.pi)  # up and down by 1 %
    for losses in (np.full(80, level), level + noise):
        bottom, top = limits(losses)
        assert (bottom + top) / 2 == pytest.approx(level, rel=0.01)
        assert top - bottom == pytest.approx(0.2 * abs(level), rel=0.2)


def test_a_loss_that_only_rises_or_is_zero_has_limits_around_its_start() -> None:
    assert limits(2.0 + 40 * SHARE) == pytest.approx((1.8, 2.2))
    assert limits(np.zeros(50)) == (-1, 1)


def test_a_steep_start_is_drawn_whole() -> None:
    bottom, top = limits(np.concatenate([[10.0, 5.0], np.linspace(2, 1, 98)]))
    assert top > 10
    assert 0 > bottom > -2


def test_other_things_are_refused() -> None:
    with refused(TypeError, "Expected a SimulatedSchedule, but got dict", "schedules.simulate_schedule"):
        plot_schedule({"one": {}})
    with refused(ValueError, "at least one, but got none"):
        plot_schedule({})
    with refused(TypeError, "Expected an LRRangeTest, but got int"):
        plot_lr_finder(3)


def test_the_example_draws_the_figures_of_the_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load_example(Path(__file__).parents[2] / "examples" / "schedules.py")
    panels = example.panels()
    assert len(panels) == 22
    for factor in (1, 2, 3):
        compared = panels[f"CosineAnnealingWarmRestarts, T_mult {factor}"]
        assert np.array_equal(compared["torch"].learning_rates, compared["timm"].learning_rates)
        assert (compared["timm"].learning_rates == example.LR).sum() == {1: 2, 2: 3, 3: 3}[factor]
    half = example.HALF * example.UPDATES_PER_EPOCH
    assert panels["cosine, warm-up of 20"].learning_rates[0, 0] == 0.01
    assert panels["cosine, cycle_limit 1"].learning_rates[half:].tolist() == [[1e-5]] * half
    assert panels["timm's script: cooldown of 10"].learning_rates[-100:].tolist() == [[1e-6]] * 100
    with monkeypatch.context() as patch:
        drawn: list[str] = []
        patch.setattr(example, "plot_schedule", lambda each, title, figure: drawn.append(title))
        assert example.main(tmp_path / "few.png").stat().st_size > 0
    assert drawn == list(panels)

"""The commands find-lr and preview-lr: learning rates of a recipe, and nothing in its run folder."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from refusal import contents, refused
from screens import Screen

from timm_accel.commands.find_lr import find_lr
from timm_accel.commands.preview_lr import preview_lr
from timm_accel.recipes import Recipe, build_run
from timm_accel.schedules import simulate_schedule
from timm_accel.text_files import read_csv


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe of a tiny model on 19 images without splits, of which 16 are for training."""
    data = write_images(tmp_path / "data", {"cat": 7, "dog": 6, "owl": 6})
    options: dict[str, Any] = {"model": "test_resnet", "image_size": 32, "batch_size": 4, "num_workers": 0}
    return Recipe(data_dir=str(data), run_dir=str(tmp_path / "run"), num_epochs=3, save_every_n_updates=1, **options)


def facts(lines: list[str]) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition("  ") for line in lines) if value}


def test_suggestions_are_printed_and_drawn_and_the_run_folder_stays_as_it_was(
    recipe: Recipe, screen: Screen, tmp_path: Path
) -> None:
    build_run(recipe).train()
    before, out = contents(Path(recipe.run_dir)), tmp_path / "figure.png"
    lines = screen.run(find_lr, recipe, first_lr=1e-5, num_updates=10, columns=40, out=str(out))
    shown = facts(lines)
    assert lines[0] == "LR range test of 10 updates …"
    assert 3 <= int(shown["updates"]) <= 10
    assert {"steepest", "minimum / 10", "valley"} <= set(shown)
    assert 1e-6 <= float(shown["minimum / 10"]) <= 0.1
    assert Image.open(out).format == "PNG"
    assert contents(Path(recipe.run_dir)) == before


def test_the_range_test_makes_no_run_folder(recipe: Recipe, screen: Screen) -> None:
    screen.run(find_lr, replace(recipe, resume="auto"), num_updates=10)
    assert not Path(recipe.run_dir).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"first_lr": 1.0}, ["min_lr to be positive and below max_lr"]),
        ({"num_updates": 3}, ["num_updates to be at least 10"]),
        ({"stop_at": 0.5}, ["stop_at to be above 1"]),
        ({"num_updates": 0}, ["num_updates to be at least 10"]),
        ({"last_lr": math.inf}, ["min_lr to be positive and below max_lr"]),
        ({"out": "figure.pgn"}, ["out to end in", "figure.pgn", "Did you mean", "'.png'"]),
    ],
)
def test_a_mistake_in_the_range_test_is_one_sentence(
    recipe: Recipe, screen: Screen, change: dict, words: list[str]
) -> None:
    with refused(ValueError, *words):
        screen.run(find_lr, recipe, **change)
    assert screen.capsys.readouterr() == ("", "")  # nothing before the refusal
    assert not Path(recipe.run_dir).exists()


@pytest.mark.parametrize(
    ("options", "num_processes", "expected"),
    [
        ({}, 1, 4),
        ({"batch_size": 6}, 1, 2),
        ({"batch_size": 6, "drop_last": False}, 1, 3),
        ({"batch_size": 32}, 1, 1),
        ({"gradient_accumulation_steps": 3}, 1, 2),
        ({"batch_size": 2}, 2, 4),
        ({"num_repeats": 3}, 1, 4),
        ({"sampler": "balanced"}, 1, 4),
    ],
)
def test_the_updates_are_those_of_the_run(
    recipe: Recipe, screen: Screen, options: dict, num_processes: int, expected: int
) -> None:
    recipe = replace(recipe, **options)
    lines = screen.run(preview_lr, recipe, num_processes=num_processes)
    assert facts(lines)["updates"] == f"{3 * expected}: 3 epochs of {expected}"
    assert not Path(recipe.run_dir).exists()
    if num_processes == 1:
        trainer = build_run(replace(recipe, num_epochs=1, warmup_epochs=0)).train()
        assert trainer.current_run().updates_per_epoch == expected


def test_the_learning_rates_are_those_of_the_simulation(recipe: Recipe, screen: Screen, tmp_path: Path) -> None:
    recipe = replace(recipe, num_epochs=40, data_dir="/no/data", sched_args={"step_on_epochs": False})
    expected = simulate_schedule(recipe, updates_per_epoch=5).learning_rates[:, 0]
    lines = screen.run(preview_lr, recipe, updates_per_epoch=5, out=str(tmp_path / "lr.csv"))
    rows = read_csv(tmp_path / "lr.csv")
    np.testing.assert_array_equal([float(row["lr"]) for row in rows], expected)
    assert rows[7]["epoch"] == "1.4"
    assert [line.split() for line in lines[-2:]] == [
        [str(epoch), f"{expected[5 * (epoch - 1)]:.3g}"] for epoch in (37, 40)
    ]
    bars = lines[3]
    assert len(bars) == 80
    assert (bars[0], bars[-1]) == ("▁", "▁")
    assert math.isclose(bars.index("█") * 200 / 80, int(expected.argmax()), abs_tol=10)


def test_the_preview_is_drawn(recipe: Recipe, screen: Screen, tmp_path: Path) -> None:
    screen.run(preview_lr, recipe, updates_per_epoch=5, columns=40, out=str(tmp_path / "lr.png"))
    assert Image.open(tmp_path / "lr.png").format == "PNG"


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({"data_dir": "/no/data"}, {}, ["'/no/data'"]),
        ({"data_dir": "wds/shards"}, {}, ["updates_per_epoch beside 'wds/shards'", "Pass the number of images"]),
        ({}, {"updates_per_epoch": 0}, ["updates_per_epoch to be an integer of at least 1"]),
        ({}, {"num_processes": 0, "updates_per_epoch": 5}, ["num_processes to be an integer of at least 1"]),
        ({}, {"num_processes": 0}, ["num_processes to be an integer of at least 1"]),
        ({"sched": "plateau"}, {"updates_per_epoch": 5}, ["a plateau schedule follows them"]),
        ({}, {"out": "lr.txt"}, ["out to end in .csv,", "lr.txt"]),
    ],
)
def test_a_mistake_in_the_preview_is_one_sentence(
    recipe: Recipe, screen: Screen, options: dict, change: dict, words: list[str]
) -> None:
    with refused((ValueError, FileNotFoundError), *words):
        screen.run(preview_lr, replace(recipe, **options), **change)

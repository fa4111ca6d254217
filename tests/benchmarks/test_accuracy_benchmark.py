"""The benchmark of accuracy: when a target was reached, in seconds and in processor seconds."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import accuracy
from timm_accel.recipes import named_recipe

COSTS = [(target, unit) for target in (0.92, 0.945) for unit in ("s", "processor s")]
ENDS = ["fast_cpu, median", "short, seed 4"]


def test_a_target_is_reached_in_the_first_epoch_that_has_it() -> None:
    history = {"accuracy": [0.91, 0.93, 0.919], "ema_model_accuracy": [0.94, 0.945]}
    metrics = SimpleNamespace(get_metric_names=lambda: history.keys(), get_metric_values=history.get)
    clock = SimpleNamespace(seconds=[10.0, 20.0, 30.0], processor=[11.0, 22.0, 33.0])
    found = accuracy.report("a", SimpleNamespace(run_history=metrics), clock, {"accuracy with flips": 0.95})  # type: ignore[arg-type]
    assert found == {
        **{"s": 30, "processor s": 33, "accuracy with flips": 0.95, "accuracy": 0.919, "ema_model_accuracy": 0.945},
        **{"accuracy to 0.92, s": 20, "accuracy to 0.92, processor s": 22},
        **{"accuracy to 0.945, s": float("inf"), "accuracy to 0.945, processor s": float("inf")},
        **{"ema_model_accuracy to 0.92, s": 20, "ema_model_accuracy to 0.92, processor s": 22},  # its first epoch is 2
        **{"ema_model_accuracy to 0.945, s": 30, "ema_model_accuracy to 0.945, processor s": 33},
        **{"to 0.92, s": 20, "to 0.92, processor s": 22, "to 0.945, s": 30, "to 0.945, processor s": 33},
    }


def test_children_that_live_and_that_ended_count_as_processor_time() -> None:
    before, work = accuracy.processor_seconds(), "sum(range(2_000_000)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = accuracy.processor_seconds()
        child.communicate(b"\n")
    assert before < before + 0.02 < alive <= accuracy.processor_seconds() + 0.02


def test_the_recipes_take_turns_and_differ_in_their_options_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def by_recipe(title: str, recipe: str, **changes: Any) -> dict[str, float]:
        calls.append((title, changes["seed"], named_recipe(recipe).recipe(run_dir="runs/a", **changes)))
        reached = {f"to {target}, {unit}": float("inf") for target, unit in COSTS}
        return reached | {"accuracy": len(calls) / 10, "ema_model_accuracy": 0.5, "s": 2000.4, "processor s": 9}

    monkeypatch.setattr(accuracy, "by_recipe", by_recipe)
    options = Namespace(set="fashion", data_dir="photos", num_epochs=None, num_workers=0, mixed_precision="no")
    options.image_size = None
    options.seeds, options.ways = [4, 5, 6], ["fast_cpu", "short", "before"]
    (table,) = accuracy.main(options)
    assert [call[:2] for call in calls[:4]] == [("fast_cpu", 4), ("short", 4), ("before", 4), ("before", 5)]
    assert [row[0] for row in table.rows[:5]] == [*(f"fast_cpu, seed {seed}" for seed in (4, 5, 6)), *ENDS]
    assert [row[1] for row in table.rows[8:]] == ["0.3", "0.4", "0.9", "0.4"]
    assert table.rows[0][2:] == ["0.5", *["not reached"] * 4, "2000", "9"]
    assert table.columns[1:4] == ["accuracy", "EMA model", "to 0.92, s"]
    own, cut, old = (call[2] for call in calls[:3])
    assert own.diff(cut).keys() == {"num_epochs"}
    assert own.diff(old).keys() == accuracy.BEFORE.keys()  # an option that is the same now is none of BEFORE
    assert {recipe.mixed_precision for recipe in (own, cut, old)} == {"no"}


def test_a_benchmark_that_was_cut_trains_only_the_seeds_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[int] = []

    def by_recipe(title: str, recipe: str, **changes: Any) -> dict[str, float]:
        named_recipe(recipe).recipe(**{name: value for name, value in changes.items() if name != "flips"})
        if changes["seed"] == 2 and 2 not in trained:
            trained.append(2)
            raise KeyboardInterrupt
        trained.append(changes["seed"])
        models = ("accuracy", "ema_model_accuracy")
        keys = [f"{model}{flips}" for model in models for flips in ("", " with flips")]
        return {"s": 9.0, **dict.fromkeys(keys, changes["seed"] / 10)}

    monkeypatch.setattr(accuracy, "by_recipe", by_recipe)
    options = Namespace(set="elpv", data_dir="cells", num_epochs=None, num_workers=0, mixed_precision="no")
    options.image_size = None
    options.seeds, options.scratch, options.weights, options.kept = [1, 2, 3], False, "a.pth", tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        accuracy.main(options)
    (table,) = accuracy.main(options)
    assert trained == [1, 2, 2, 3]
    assert [row[1] for row in table.rows] == ["0.1", "0.2", "0.3", "0.2"]

"""Multi-label metrics, distillation, and the learning-rate finder: two processes against one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from losses_worker import KINDS, results
from ranks import launch

WORKER = Path(__file__).parent / "losses_worker.py"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = launch(WORKER, [2], tmp_path_factory.mktemp("two"))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return results()


@pytest.mark.parametrize("count", ["7", "1"])
def test_multi_label_metrics_are_those_of_one_process(one: Any, two: Any, count: str) -> None:
    alone, ranks = one["multi_label"][count], [rank["multi_label"][count] for rank in two]
    assert ranks[0] == ranks[1]
    assert ranks[0].keys() == alone.keys() > {"map", "f1_macro", "exact_match", "ema_model_map"}
    for name, values in alone.items():
        assert ranks[0][name] == pytest.approx(values, rel=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_student_and_projection_stay_equal_on_both(two: Any, kind: str) -> None:
    first, second = (rank[kind] for rank in two)
    assert first.keys() == second.keys()
    assert any(name.startswith("distill_projection") for name in first) == (kind == "feature")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_gives_the_weights_of_one_process(one: Any, two: Any, kind: str) -> None:
    for name, value in one[kind].items():
        assert torch.allclose(two[0][kind][name], value, atol=1e-5), name


def test_a_range_test_is_that_of_one_process_ends_on_both_and_leaves_the_model(one: Any, two: Any) -> None:
    first, second = (rank["range_test"] for rank in two)
    assert first == second
    assert 3 < len(first["losses"]) < 20  # diverged, and both left
    assert first["losses"] == pytest.approx(one["range_test"]["losses"], rel=1e-4)
    assert first["rates"] == one["range_test"]["rates"]
    assert first["change"] == one["range_test"]["change"] == 0

"""No file of a run is written by two ranks, whatever the run keeps."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images
from ranks import launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    write_images(root / "data", {"cat": 5, "dog": 5}, size=32)
    return launch(Path(__file__).with_name("writes_worker.py"), [2, 3], root)


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{request.param}_{rank}.json").read_text()) for rank in range(request.param)]


def test_no_path_is_written_by_two_ranks(ranks: Any) -> None:
    assert [rank["code"] for rank in ranks] == [0] * len(ranks)
    writers = Counter(path for rank in ranks for path in {*rank["written"]})
    assert [path for path, count in writers.items() if count > 1] == []


def test_rank_0_writes_all_files_of_a_run_and_the_index(ranks: Any) -> None:
    first, *others = [{*rank["written"]} for rank in ranks]
    run = f"run{len(ranks)}"
    expected = ["lock", "recipe.yaml", "split.csv", "history.csv", "report.html", "trackers.jsonl"]
    expected += ["best", "best_ema", "state/latest", "tensorboard"]
    assert {f"{run}/{name}" for name in expected} <= first
    for rank in range(len(ranks)):  # its file in a state, which rank 0 has gathered
        assert f"{run}/state/000001_epoch_0_batch_1.unfinished/rank_{rank}.pt" in first
    assert others == [set()] * len(others)

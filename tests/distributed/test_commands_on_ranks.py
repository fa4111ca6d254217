"""Commands that need one process, under a launcher of two: rank 0 works, and the other writes and prints nothing."""

import json
from pathlib import Path

import pytest
from ranks import launch
from trained_runs import trained_run

from timm_accel.commands.main import COMMANDS, TOGETHER

WORKER = Path(__file__).parent / "alone_worker.py"


@pytest.mark.parametrize("name", ["export", "average"])
def test_rank_0_works_alone(name: str, tmp_path: Path) -> None:
    run, out = str(trained_run().run), tmp_path / ("soup" if name == "average" else "model.pt")
    words = [name, run, run, "--out", str(out)] if name == "average" else [name, run, str(out)]
    launch(WORKER, [2], tmp_path, *words)
    (code, printed), other = (json.loads((tmp_path / f"alone_{rank}.json").read_text()) for rank in range(2))
    assert code == 0
    assert out.name in printed or "format" in printed
    assert other == [0, ""]
    assert out.exists()


def test_the_commands_of_all_ranks_are_those_that_train_or_share_images() -> None:
    assert {*COMMANDS} - {*TOGETHER} == {
        "export", "audit", "average", "preview-lr", "models", "report", "recipes", "init", "completion"}  # fmt: skip

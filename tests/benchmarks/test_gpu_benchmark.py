"""The benchmark for a GPU, in its small form on the CPU."""

import json
import os
from pathlib import Path

from forked import run

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_the_small_form_measures_every_part_and_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = run([BENCHMARK, "--small", "--out", out], env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    (rates,) = found["step rates"].values()
    assert len(rates) == 7
    assert all(rate > 0 for runs in rates.values() for rate in runs)
    assert set(found["host waits"].values()) == {0.0}
    assert len(found["saves"]["milliseconds"]) == 2
    assert found["saves"]["mebibytes"] > 1
    assert [len(rates) for rates in found["streams"].values()] == [1, 1]
    assert "compiled" not in found  # the compiler takes longer than all else
    for way in rates:
        assert f"| test_resnet, 8 | {way} |" in done.stdout

"""The benchmark for a GPU, in its small form on the CPU."""

import json
import os
import time
from pathlib import Path

import pytest
from forked import run

from benchmarks import gpu
from benchmarks.gpu_data import SMALL
from benchmarks.pairs import Pairs


def test_the_small_form_measures_every_part_and_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = ["-m", "benchmarks", "gpu", "--small", "--out", out]
    done = run(words, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    steps, parts = json.loads(out.read_text())["tables"]
    ways, inputs = ["by hand", "timm_accel"], "Mixup etc., EMA, from"
    rows = {
        "plain": [ways[0], "pytorch-accelerated", ways[1]],
        "Mixup etc.": ways,
        "Mixup etc., EMA": ways,
        f"{inputs} JPEG": ways,
        f"{inputs} memory": [*ways, "timm_accel, one stream"],
    }
    assert [row[:2] for row in steps["rows"]] == [
        [f"test_resnet, 8, {group}", way] for group, each in rows.items() for way in each
    ]
    assert all(float(row[2].split()[0]) > 0 for row in steps["rows"])
    found = {part: result for part, result, _ in parts["rows"]}
    assert list(found) == list(gpu.PARTS)
    assert found.pop("a state in training").startswith("6 MiB, ")
    for part, result in found.items():
        assert result == ("not run: no GPU" if part in gpu.NEED_GPU else "measured")


def test_waits_are_counted_for_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu.host_waits(SMALL, {})
    assert found.startswith("none between two sync points; a step, with them: by hand 0.00, pytorch-accelerated 0.00, ")
    assert capsys.readouterr().out == ""


def test_a_part_that_fails_or_takes_too_long_loses_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def measured(sizes: object, steps: dict[str, Pairs]) -> str:
        steps["a"] = Pairs({"by hand": [1.0]})
        return "measured"

    def fails(*_: object) -> str:
        raise RuntimeError("no\nmemory")

    def sleeps(*_: object) -> str:
        time.sleep(60)
        return "never"

    steps, parts = gpu.measure({"one": fails, "two": measured, "three": sleeps, "four": measured}, SMALL, 0.2)
    assert steps.rows == [["by hand", "1000.00 (1000.00 to 1000.00)", ""]]
    assert [row[:2] for row in parts.rows] == [
        ["one", "failed: RuntimeError: no memory"],
        ["two", "measured"],
        ["three", "failed: OutOfTimeError: no time was left"],
        ["four", "not run: the 0 s were over"],
    ]
    assert capsys.readouterr().out.startswith("one | failed: RuntimeError: no memory | 0\n")


def test_tests_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu")
    lines = ["import pytest", "@pytest.mark.gpu", "def test_one(): assert 1 == 2", "def test_two(): assert 1 == 2"]
    (tmp_path / "test_one.py").write_text("\n".join(lines))
    with pytest.raises(RuntimeError, match=r"^1 failed in [\d.]+s; FAILED test_one\.py::test_one"):
        gpu.tests(SMALL, {})

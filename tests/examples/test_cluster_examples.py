"""The examples for Ray Train and SkyPilot; the body of SkyPilot's file runs with a stand-in for torchrun."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_images
from tiny_runs import parse_recipe

from timm_accel.states.folder import open_state

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
ROOT = CLUSTER.parents[1]


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())


def test_skypilot_starts_a_rank_for_each_gpu_of_its_hosts(task: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "torchrun").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "4",
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
    } | task["envs"]
    words = subprocess.check_output(["bash", "-c", task["run"]], env=environment, text=True, timeout=20).split()
    hosts = "--nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr 10.0.0.7 --master_port 29500"
    assert words[:13] == [*hosts.split(), "-m", "timm_accel", "train"]
    recipe = parse_recipe(words[13:])
    assert (recipe.run_dir, recipe.resume) == ("/runs/photos", "auto")
    assert Path(recipe.run_dir).parent.as_posix() in task["file_mounts"]  # it must outlive the hosts


def test_skypilot_starts_a_stopped_run_again(task: dict[str, Any]) -> None:
    recovery = task["resources"]["job_recovery"]
    assert recovery == {"strategy": "FAILOVER", "max_restarts_on_errors": 3, "recover_on_exit_codes": [75]}


@pytest.mark.skipif(find_spec("sky") is None, reason="needs skypilot")
def test_skypilot_knows_every_key(task: dict[str, Any]) -> None:
    from jsonschema import validate
    from sky.utils import schemas

    validate(task, schemas.get_task_schema())
    validate(task["resources"], schemas.get_resources_schema())
    for mount in task["file_mounts"].values():
        validate(mount, schemas.get_storage_schema())


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray[train]")
def test_two_workers_of_ray_report_metrics_and_a_state(tmp_path: Path) -> None:
    for split, count in {"train": 32, "val": 5}.items():
        write_images(tmp_path / "photos" / split, {"a": count, "b": count}, size=32)
    options = ["--data_dir", "photos", "--run_dir", "run", "--model", "test_resnet", "--num_epochs", "3"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "400",
        "RAY_raylet_start_wait_time_s": "300",
    }
    result = subprocess.run(
        [sys.executable, CLUSTER / "ray_train.py", *options],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "2 processes" in result.stdout
    (said,) = re.findall(r"^accuracy ([\d.]+), last state in (.+)$", result.stdout, re.M)
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    names, last = rows[0].split(","), rows[-1].split(",")
    assert len(rows) == 4
    assert float(said[0]) == pytest.approx(float(last[names.index("accuracy")]), abs=1e-4)
    state = open_state(Path(said[1]))
    assert {"common.pt", "rank_0.pt", "rank_1.pt"} <= set(state.manifest["files"])

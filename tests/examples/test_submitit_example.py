"""submitit's executor on this machine: a job that gets its signal queues again, and ends in the same bits."""

import os
import signal
from pathlib import Path

import pytest
from conftest import write_images
from own_slurm import wait_until
from resumed_runs import outcome
from tiny_runs import differences, load_example

pytest.importorskip("submitit", reason="needs submitit")
EXAMPLE = Path(__file__).parents[2] / "examples" / "slurm" / "submitit_train.py"
ROOT = EXAMPLE.parents[2]
SECONDS = 300


def test_a_job_of_two_tasks_queues_again_and_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, count in {"train": 40, "val": 6}.items():
        write_images(tmp_path / "photos" / split, {"a": count, "b": count}, size=32)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{EXAMPLE.parent}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    main = load_example(EXAMPLE).main
    options = {"data_dir": "photos", "model": "test_resnet", "num_epochs": 6, "ranks": 2, "minutes": 30,
               "cluster": "local"}  # fmt: skip
    main(run_dir="runs/whole", **options).results()
    job, history = main(run_dir="runs/cut", **options), tmp_path / "runs/cut/history.csv"
    wait_until(lambda: history.exists() and history.read_text().count("\n") >= 3, SECONDS)
    ranks = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_rank(int(pid), job.job_id)]
    for rank in ranks:
        os.kill(rank, signal.SIGUSR2)
    job.results()
    said = job.paths.stdout.read_text() + job.paths.stderr.read_text()
    assert said.count("Received SIGUSR2.") == said.count("Resumed from ") == said.count("Requeued job") == 1
    found = differences(outcome(tmp_path / "runs/whole"), outcome(tmp_path / "runs/cut"))
    assert [place for place in found if not place.startswith(("/files/recipe.yaml", "/files/submitit/"))] == []


def is_rank(process: int, job: str) -> bool:
    try:
        return f"SUBMITIT_LOCAL_JOB_ID={job}\0" in Path(f"/proc/{process}/environ").read_text()
    except OSError:
        return False

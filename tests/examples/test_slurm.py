"""The scripts for SLURM in a real SLURM of two nodes: a job that is stopped queues again, and ends in the same bits."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_images
from own_slurm import answer, needs_slurm, running_slurm, wait_until
from resumed_runs import outcome
from tiny_runs import differences

pytestmark = needs_slurm
ROOT = Path(__file__).parents[2]
SECONDS = 400  # for a job, on a machine that does other things too
TRAIN = ["--data_dir", "photos", "--model", "test_resnet", "--image_size", "32", "--batch_size", "4", "--num_workers",
         "1", "--warmup_epochs", "1", "--num_epochs", "6"]  # fmt: skip


class Cluster:
    """The folder from which jobs are submitted, and the variables that find SLURM."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def submit(self, script: str, *options: str, words: list[str]) -> str:
        command = ["sbatch", "--parsable", "--cpus-per-task=1", f"--chdir={self.folder}", *options]
        return answer([*command, str(ROOT / "examples/slurm" / script), *words], self.environment)

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def stop_after(self, epochs: int, job: str, log: str, *options: str) -> None:
        """Send SIGUSR1 as the time limit does, once some epochs are done."""
        wait_until(lambda: self.log(log).count("\nepoch ") >= epochs, SECONDS)
        answer(["scancel", "--signal=USR1", *options, job], self.environment)

    def finish(self, *logs: str) -> None:
        wait_until(lambda: all("\nReport: " in self.log(log) for log in logs), SECONDS)
        wait_until(lambda: answer(["squeue", "-h"], self.environment) == "", 60)

    def restarts(self, job: str) -> int:
        return int(answer(["scontrol", "show", "job", job], self.environment).partition("Restarts=")[2].split()[0])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    work = tmp_path_factory.mktemp("work")
    for split, count in {"train": 40, "val": 6}.items():
        write_images(work / "photos" / split, {"a": count, "b": count}, size=32)
    with running_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        ours = {"PATH": path, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        yield Cluster(work, environment | ours)


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster) -> Path:
    """A run of two ranks on two nodes that nobody stops."""
    job = cluster.submit("train.sbatch", "--nodes=2", words=[*TRAIN, "--run_dir", "runs/whole"])
    cluster.finish(f"train_{job}.log")
    assert cluster.restarts(job) == 0
    return cluster.folder / "runs" / "whole"


def differing(first: Path, second: Path) -> set[str]:
    """Where two runs differ, but for the files that name the run folder."""
    return set(differences(outcome(first), outcome(second))) - {"/files/recipe.yaml", "/files/report.html"}


@pytest.mark.parametrize(("script", "options"), [("train", []), ("torchrun", ["--batch"])])
def test_a_job_that_is_stopped_queues_again_and_ends_in_the_same_bits(
    script: str, options: list[str], cluster: Cluster, uninterrupted: Path
) -> None:
    job = cluster.submit(f"{script}.sbatch", "--nodes=2", words=[*TRAIN, "--run_dir", f"runs/{script}"])
    cluster.stop_after(2, job, f"train_{job}.log", *options)
    cluster.finish(f"train_{job}.log")
    assert cluster.restarts(job) == 1
    log = cluster.log(f"train_{job}.log")
    assert log.count("Resumed from ") == 1
    assert ("Exited with exit code 75" in log) == (script == "train")
    assert differing(uninterrupted, cluster.folder / "runs" / script) == set()


def test_each_job_of_an_array_queues_again_by_itself(cluster: Cluster) -> None:
    array = cluster.submit("seeds.sbatch", "--array=0-1", words=TRAIN)
    cluster.stop_after(2, f"{array}_1", f"seeds_{array}_1.log")
    cluster.finish(*(f"seeds_{array}_{seed}.log" for seed in range(2)))
    assert [cluster.restarts(f"{array}_{seed}") for seed in range(2)] == [0, 1]
    assert differing(cluster.folder / "runs/seed_0", cluster.folder / "runs/seed_1") != set()


def test_a_job_that_is_canceled_does_not_queue_again(cluster: Cluster) -> None:
    job = cluster.submit("train.sbatch", words=[*TRAIN, "--run_dir", "runs/canceled"])
    wait_until(lambda: "\nepoch " in cluster.log(f"train_{job}.log"), SECONDS)
    answer(["scancel", job], cluster.environment)
    wait_until(lambda: answer(["squeue", "-h"], cluster.environment) == "", 60)
    assert cluster.restarts(job) == 0
    assert "Received SIGTERM." in cluster.log(f"train_{job}.log")


def test_tasks_that_do_not_know_of_each_other_are_refused(cluster: Cluster) -> None:
    script = cluster.folder / "tasks.py"
    script.write_text("from timm_accel.distributed.processes import process_state\nprocess_state()\n")
    said = answer(["srun", "--ntasks=2", "bash", "-c", f"exec 2>&1 python {script}"], cluster.environment)
    assert said.count("Expected the 2 tasks of the job (SLURM_STEP_NUM_TASKS) to run together") == 2

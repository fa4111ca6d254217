"""The scripts for SLURM, with stand-ins for its programs: what each task is told, and when the job queues again."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).parents[2] / "examples" / "slurm"
PROGRAMS = {  # srun starts the tasks one after another; the rank exits with $CODE, or waits for SIGTERM
    "srun": """
        while [[ $1 == --* ]]; do echo "option $1"; shift; done
        for id in $(seq 0 $((SLURM_NTASKS - 1))); do
            SLURM_PROCID=$id SLURM_LOCALID=$((id % SLURM_NTASKS_PER_NODE)) "$@" || code=$?
        done
        exit ${code:-0}""",
    "scontrol": """
        if [[ $1 == show ]]; then printf '%s\\n' host7 host8; else echo "scontrol $*"; fi""",
    "scancel": """
        echo "scancel $*"; kill -TERM "$(cat torchrun.pid)" """,
    "python": """
        echo "$RANK/$WORLD_SIZE local $LOCAL_RANK/$LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT: $*"; exit $CODE""",
    "torchrun": """
        trap 'sleep 0.3; echo saved; exit 1' TERM; echo $$ > torchrun.pid; echo "torchrun $*"
        if [[ $CODE ]]; then exit $CODE; fi
        while true; do sleep 0.05; done""",
}
JOB = {"SLURM_JOB_ID": "54321", "SLURM_JOB_NODELIST": "host[7-8]", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
       "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "8"}  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin"} | JOB


def run_script(name: str, environment: dict[str, str], *words: str) -> tuple[int, str]:
    command = ["bash", str(SLURM / name), *words]
    folder = environment["PATH"].partition(":")[0]
    result = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=20, check=False
    )
    assert result.stderr == ""
    return result.returncode, result.stdout


ARRAY = {"SLURM_ARRAY_JOB_ID": "54320", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(("script", "job"), [("train", "54321"), ("seeds", "54320_3")])
def test_a_job_queues_again_on_exit_code_75_alone(script: str, job: str, environment: dict[str, str]) -> None:
    for code in (0, 1, 2, 74, 75, 76, 137, 143):
        ended, said = run_script(f"{script}.sbatch", environment | ARRAY | {"CODE": str(code)})
        assert ended == code
        assert re.findall("scontrol requeue.*", said) == [f"scontrol requeue {job}"] * (code == 75)


def test_each_task_is_a_rank(environment: dict[str, str]) -> None:
    tasks = {"SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "2", "CODE": "0"}
    _, said = run_script("train.sbatch", environment | tasks, "--data_dir", "my photos")
    train = "at host7:24321: -m timm_accel train --resume auto --data_dir my photos"
    options = ["option --cpus-per-task=8", "option --kill-on-bad-exit=0"]
    assert said.splitlines() == [*options, *(f"{rank}/3 local {rank % 2}/2 {train}" for rank in range(3))]


def test_one_rank_that_was_stopped_is_enough_to_queue_again(environment: dict[str, str]) -> None:
    (Path(environment["PATH"].partition(":")[0]) / "python").write_text("#!/bin/bash\nexit $((RANK == 1 ? 75 : 0))\n")
    ended, said = run_script("train.sbatch", environment | {"SLURM_NTASKS": "2"})
    assert (ended, said.splitlines()[-1]) == (75, "scontrol requeue 54321")


def test_each_job_of_the_array_has_its_seed_and_folder(environment: dict[str, str]) -> None:
    _, said = run_script("seeds.sbatch", environment | ARRAY | {"CODE": "0"}, "--data_dir", "photos", "--lr", "0.1")
    words = "-m timm_accel train --resume auto --seed 3 --run_dir runs/seed_3 --data_dir photos --lr 0.1"
    assert said.splitlines()[-1].endswith(f": {words}")


@pytest.mark.parametrize("code", [0, 1, 75])
def test_torchrun_that_ends_by_itself_is_not_started_again(code: int, environment: dict[str, str]) -> None:
    ended, said = run_script("torchrun.sbatch", environment | {"CODE": str(code), "SLURM_GPUS_ON_NODE": "4"}, "--lr=1")
    assert ended == code
    assert "scontrol" not in said
    options = "--nnodes 2 --nproc_per_node 4 --max_restarts 3 --rdzv_backend c10d --rdzv_endpoint host7:24321"
    assert said.splitlines()[-1] == f"torchrun {options} --rdzv_id 54321 -m timm_accel train --resume auto --lr=1"


def test_torchrun_that_the_time_limit_stops_is_started_again(environment: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(SLURM / "torchrun.sbatch")]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 20
        while not (tmp_path / "torchrun.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(job.pid, signal.SIGUSR1)
        said, _ = job.communicate(timeout=20)
    assert said.splitlines()[-3:] == ["scancel --signal=TERM 54321", "saved", "scontrol requeue 54321"]
    assert job.returncode != 0


@pytest.mark.parametrize("script", ["train", "seeds", "torchrun"])
def test_the_limits_leave_time_to_save(script: str) -> None:
    text = (SLURM / f"{script}.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", text, re.MULTILINE))
    assert options["signal"] == ("B:USR1@120" if script == "torchrun" else "USR1@120")
    assert options["open-mode"] == "append"
    assert "requeue" in options
    assert subprocess.run(["bash", "-n", SLURM / f"{script}.sbatch"], check=False).returncode == 0

"""What was launched against what runs, with environments and command lines as dictionaries and lists."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from refusal import refused
from tiny_runs import make_trainer, tiny_data

from timm_accel.distributed import launching
from timm_accel.distributed.launching import check_launch, options_of_command
from timm_accel.training import LoopTrainer


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_each_launchers_number_of_processes_is_compared(name: str) -> None:
    with refused(
        ValueError,
        "the 3 processes",
        f"({name})",
        "all images",
        "got 1 in",
        "USE_CPU=true torchrun --standalone --nproc_per_node 3",
    ):
        check_launch({name: "3"}, {}, 1, 1)
    with refused(ValueError, "the 3 processes", "got 2 in"):
        check_launch({name: "3"}, {}, 1, 2)
    check_launch({name: "3"}, {}, 1, 3)
    for alone in ("1", "", "many"):
        check_launch({name: alone}, {}, 1, 1)


def test_a_process_group_is_compared() -> None:
    for environment in ({}, {"WORLD_SIZE": "1"}):
        with refused(ValueError, "the 2 processes", "(the process group)", "got 1"):
            check_launch(environment, {}, 2, 1)
        check_launch(environment, {}, 2, 2)
    check_launch({}, {}, 1, 2)  # the processes of a TPU have neither


def test_the_launchers_own_number_counts_where_it_sets_no_other() -> None:
    with refused(ValueError, "the 2 processes", "(accelerate launch)", "got 1", "ACCELERATE_USE_CPU=true torchrun"):
        check_launch({"ACCELERATE_USE_CPU": "True"}, {"num_processes": 2}, 1, 1)
    check_launch({"WORLD_SIZE": "4"}, {"num_processes": 5}, 1, 4)  # 5 on 2 machines are 2 on each
    check_launch({}, {"num_processes": None}, 1, 1)


def test_the_remedy_is_another_where_the_cpu_was_asked_for() -> None:
    for value in ("true", "1", "True", "yes", "y", "t", "on"):
        with refused(ValueError, "Create no PartialState() before, since it ignores ACCELERATE_USE_CPU."):
            check_launch({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": value}, {}, 2, 1)
    with refused(ValueError, "ACCELERATE_USE_CPU=true torchrun"):
        check_launch({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "false"}, {}, 2, 1)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SUBMITIT_LOCAL_NTASKS"])
def test_tasks_of_a_job_that_nothing_joins_are_refused(name: str) -> None:
    refusal = ("the 3 tasks of the job", f"({name})", "all images", "each of them alone", "train.sbatch", "export()")
    alone = {"GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "2"}  # of `srun torchrun --standalone --nproc_per_node 2`
    for environment, num_processes in (({}, 1), ({"SLURM_NTASKS": "3", "WORLD_SIZE": ""}, 1), (alone, 2)):
        with refused(ValueError, *refusal):
            check_launch(environment | {name: "3"}, {}, num_processes, num_processes)
    with refused(ValueError, *refusal):  # `srun accelerate launch` on a CPU, or on one GPU
        check_launch({name: "3"}, {"num_processes": 1}, 1, 1)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SUBMITIT_LOCAL_NTASKS"])
def test_tasks_of_a_job_that_something_joins_are_not_refused(name: str) -> None:
    check_launch({name: "1"}, {}, 1, 1)
    check_launch({"SLURM_NTASKS": "3", "SLURM_PROCID": "0"}, {}, 1, 1)  # a batch script that starts one process
    check_launch({name: "2", "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, {}, 4, 4)  # torchrun on two hosts
    check_launch({name: "2", "WORLD_SIZE": "2"}, {}, 2, 2)
    check_launch({name: "2", "OMPI_COMM_WORLD_SIZE": "4"}, {}, 4, 4)  # mpirun starts its daemons by srun
    check_launch({name: "4", "WORLD_SIZE": "1"}, {}, 1, 1)  # one worker of Ray, whose servers srun started
    check_launch({name: "2"}, {}, 1, 2)  # the processes of a TPU have no variable


LAUNCHES = [["/bin/accelerate", "launch"], ["accelerate-launch"], ["-m", "accelerate.commands.launch"]]


LAUNCHES += [["/lib/accelerate/commands/launch.py"], ["-m", "accelerate.commands.accelerate_cli", "launch"]]


@pytest.mark.parametrize("launch", LAUNCHES)
def test_the_command_line_of_the_launcher_is_read(launch: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "default_config_file", "/nowhere")
    found = options_of_command(["python", *launch, "--cpu", "--num_processes", "2", "train.py", "--num_processes", "7"])
    assert (found["num_processes"], found["use_fsdp"]) == (2, False)
    assert options_of_command(["python", *launch, "--use_fsdp", "train.py"])["use_fsdp"]


def write_config(path: Path, **options: Any) -> Path:
    lines = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 1, "use_cpu": True} | options
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return path


def test_the_config_of_the_launcher_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option, kind in (("use_fsdp", "FSDP"), ("use_deepspeed", "DEEPSPEED"), ("use_megatron_lm", "MEGATRON_LM")):
        config = write_config(tmp_path / f"{option}.yaml", distributed_type=kind, num_processes=3)
        given = ["accelerate", "launch", "--config_file", str(config)]
        found = options_of_command([*given, "--cpu", "train.py"])
        assert (found[option], found["num_processes"]) == (True, 3)
        assert options_of_command([*given, "--num_processes", "2", "train.py"])["num_processes"] == 2
        assert not options_of_command([*given, "--multi_gpu", "train.py"])[option]  # so that accelerate reads no kind
        monkeypatch.setattr(launching, "default_config_file", str(config))
        monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(config))
        assert options_of_command(["accelerate", "launch", "train.py"])[option]
        assert not options_of_command(["accelerate", "launch", "--cpu", "train.py"])[option]  # accelerate skips it


def test_other_commands_have_no_options(tmp_path: Path) -> None:
    for command in (
        [],
        ["bash"],
        ["python", "train.py"],
        ["accelerate", "launch"],
        ["accelerate", "launch", "--nothing"],
    ):
        assert options_of_command(command) == {}
    assert options_of_command(["accelerate", "launch", "--config_file", str(tmp_path / "missing.yaml"), "t.py"]) == {}


def test_the_launcher_is_the_parent_where_accelerate_has_left_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def options_with(parent: Any) -> dict[str, Any]:
        monkeypatch.setattr("psutil.Process.parent", parent)
        return launching.launcher_options()

    def ended(process: Any) -> Any:
        raise psutil.NoSuchProcess(1)

    command = ["accelerate", "launch", "--cpu", "--num_processes", "3", "train.py"]
    launcher = SimpleNamespace(cmdline=lambda: command)
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
    assert options_with(lambda process: launcher) == {}
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert options_with(lambda process: launcher)["num_processes"] == 3
    for parent in (lambda process: None, ended):
        assert options_with(parent) == {}


def test_a_subclass_that_creates_the_accelerator_is_checked_in_train_and_evaluate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(LoopTrainer):
        def _create_accelerator(self) -> Any:
            return trainer._accelerator

    trainer = make_trainer()
    trainer = make_trainer(Own)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for work in (lambda: trainer.train(tiny_data(), 1), lambda: trainer.evaluate(tiny_data())):
        with refused(ValueError, "the 2 processes", "(WORLD_SIZE)", "got 1"):
            work()


LAUNCHED = """
from timm_accel.distributed.processes import process_state
try:
    print("runs", process_state().num_processes)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cpu", "--num_processes", "1"], "runs 1"),
        (["--cpu", "--num_processes", "2"], "the 2 processes that were launched (accelerate launch)"),
        (["--config_file", "fsdp.yaml"], "got FSDP"),
    ],
)
def test_what_accelerate_launch_leaves_out_on_a_cpu_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    write_config(tmp_path / "fsdp.yaml", distributed_type="FSDP", fsdp_config="{}")
    (tmp_path / "script.py").write_text(LAUNCHED)
    common = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *common, *options, "script.py"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert said in result.stdout

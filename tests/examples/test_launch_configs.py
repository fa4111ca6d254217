"""The configs of `accelerate launch`, started by it, and the lines of docs/scale.md that name them.

`commands/test_training_command.py` and `traps/test_launching.py` start the config of one process.
"""

import ast
import json
import os
import re
import shlex
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from forked import Program
from tiny_runs import parse_recipe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate"
RANK = """
import json, os
from pathlib import Path
Path(f"rank{os.environ['RANK']}.json").write_text(json.dumps(dict(os.environ)))
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(folder: Path, config: str, *options_of_hosts: str) -> dict[int, dict[str, str]]:
    """Launch a script on a CPU, once for each host; return the environment of each rank."""
    (folder / "script.py").write_text(RANK)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    environment["ACCELERATE_USE_CPU"] = "true"
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", CONFIGS / f"{config}.yaml"]
    with ExitStack() as stack:
        log = stack.enter_context(open(folder / "log", "w"))
        hosts = [
            Program([*command, *options.split(), "script.py"], env=environment, cwd=folder, stdout=log, stderr=log)
            for options in options_of_hosts
        ]
        codes = [host.wait(90) for host in hosts]
    assert codes == [0] * len(hosts), (folder / "log").read_text()[-3000:]
    return {int(path.stem.removeprefix("rank")): json.loads(path.read_text()) for path in folder.glob("rank*.json")}


def places(ranks: dict[int, dict[str, str]]) -> list[tuple[str, ...]]:
    """Number, local number and host of each rank, and how many there are."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")
    return [tuple(ranks[rank][name] for name in names) for rank in sorted(ranks)]


def test_two_processes_on_a_cpu_are_two_ranks(tmp_path: Path) -> None:
    ranks = launch(tmp_path, "two_cpu_processes", f"--main_process_port {free_port()}")
    assert places(ranks) == [("0", "0", "0", "2"), ("1", "1", "0", "2")]
    assert ranks[1]["ACCELERATE_MIXED_PRECISION"] == "no"


def test_the_processes_of_one_host_are_as_many_as_are_asked_for(tmp_path: Path) -> None:
    ranks = launch(tmp_path, "one_host", f"--num_processes 3 --main_process_port {free_port()}")
    assert places(ranks) == [(str(rank), str(rank), "0", "3") for rank in range(3)]
    assert ranks[0]["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize("config", ["hosts_static", "hosts_c10d"])
def test_the_processes_of_two_hosts_are_ranks_of_one_run(config: str, tmp_path: Path) -> None:
    common = f"--num_processes 4 --main_process_ip 127.0.0.1 --main_process_port {free_port()} --machine_rank"
    ranks = launch(tmp_path, config, f"{common} 0", f"{common} 1")  # c10d needs no rank, but these hosts share ports
    assert places(ranks) == [("0", "0", "0", "4"), ("1", "1", "0", "4"), ("2", "0", "1", "4"), ("3", "1", "1", "4")]
    assert len({(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in ranks.values()}) == 1


def validated(words: list[str]) -> Any:
    """The options of a command line after ``accelerate launch``, as accelerate checks them."""
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_misspelled_key_or_kind_in_a_config_is_refused(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    broken = {"key": content | {"num_proceses": 2}, "kind": content | {"distributed_type": "MULTI_GPUS"}}
    for name, config in broken.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=r"unknown keys|MULTI_GPUS"):
            validated(["--config_file", str(tmp_path / f"{name}.yaml"), "script.py"])
    assert validated(["--config_file", str(path), "script.py"]).num_processes == content["num_processes"]


def arguments_of(script: str) -> set[str]:
    """The arguments of the `main` of a script, which may import what is not installed."""
    tree = ast.parse((ROOT / script).read_text())
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    return {argument.arg for argument in main.args.args}


TOP = (ROOT / "docs" / "scale.md").read_text().partition("## Several hosts")[0].replace("\n", " ")
LINES = re.findall(
    r"`((?:\w+=\w+ )?(?:timm-accel|accelerate|torchrun|sbatch|python|sky) [^`]*(?:--|examples/)[^`]+)`", TOP
)


def test_the_table_has_a_line_for_each_config_and_launcher() -> None:
    assert len(LINES) == 10
    for config in CONFIGS.glob("*.yaml"):
        assert sum(f"examples/accelerate/{config.name}" in line for line in LINES) == 1


@pytest.mark.parametrize("line", LINES)
def test_what_is_typed_is_read_by_its_launcher(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(line) if not re.match("[A-Z_]+=", word)]
    for file in (word for word in words if word.startswith("examples/")):
        assert (ROOT / file).is_file()
    launcher = words[0]
    if launcher == "accelerate":
        options = validated(words[2:])
        assert options.num_processes == {"one_host": 8, "hosts_static": 8, "hosts_c10d": 8}.get(
            Path(options.config_file).stem, 1 if "one_process" in line else 2
        )
        assert ("ACCELERATE_USE_CPU=true" in line) == (options.use_cpu is True)
        assert (options.module, options.training_script) == (True, "timm_accel")
    if "train" in words:
        assert parse_recipe(words[words.index("train") + 1 :]).data_dir in ("photos", None)
    elif launcher == "sbatch":
        assert parse_recipe(words[2:]).run_dir == "runs/photos"
    elif launcher == "python":
        assert {word.removeprefix("--") for word in words[2:] if word.startswith("--")} <= arguments_of(words[1])

"""What `accelerate launch` does with our config files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from forked import run

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "examples" / "accelerate").glob("*.yaml"))
ONE_PROCESS = ROOT / "examples" / "accelerate" / "one_process.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_file_has_keys_that_accelerate_knows(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.mixed_precision in ("no", "bf16")
    assert "fp16" not in yaml.safe_load(path.read_text())
    assert config.num_processes >= config.num_machines


@pytest.mark.parametrize(
    ("keys", "precision"),
    [
        ({"fp16": True}, "fp16"),
        ({"fp16": False}, None),
        ({"fp16": True, "mixed_precision": "bf16"}, "bf16"),
        ({"fp16": True, "mixed_precision": "no"}, "no"),
    ],
)
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_accelerate_reads_the_old_key_of_fp16_only_where_there_is_no_mixed_precision(
    keys: dict[str, Any], precision: str | None, ending: str, tmp_path: Path
) -> None:
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "use_cpu": False}
    path = tmp_path / f"config.{ending}"
    path.write_text(json.dumps(config | keys))  # a JSON object is YAML too
    assert load_config_from_file(str(path)).mixed_precision == precision


def test_a_launched_process_has_the_threads_that_the_config_gives_it(tmp_path: Path) -> None:
    script = tmp_path / "threads.py"
    script.write_text("import os; print('threads', os.environ['OMP_NUM_THREADS'])")

    def launched(*options: str) -> str:
        command = ["-m", "accelerate.commands.accelerate_cli", "launch", *options, str(script)]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        result = run(command, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "threads 2" in launched("--config_file", str(ONE_PROCESS))
    assert "threads 1" in launched("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no",
                                   "--dynamo_backend", "no")  # fmt: skip

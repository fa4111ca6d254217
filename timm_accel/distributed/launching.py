"""What was launched against what runs: more processes, or sharded weights, that accelerate leaves out unsaid."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator, DistributedType
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # those that accelerate reads
_TASKS = ("SLURM_STEP_NUM_TASKS", "SUBMITIT_LOCAL_NTASKS")  # of srun and of submitit, which accelerate does not read
_REMEDY_FOR_TASKS = (
    "Start them as examples/slurm/train.sbatch does, in submitit after TorchDistributedEnvironment().export(), and "
    "separate runs with one task each."
)
_SHARDING = {
    "use_fsdp": DistributedType.FSDP,
    "use_deepspeed": DistributedType.DEEPSPEED,
    "use_megatron_lm": DistributedType.MEGATRON_LM,
}
_SHARES = ("DP_SHARD", "TP", "CP", "SP")  # of `accelerate.ParallelismConfig`


def check_launch(
    environment: Mapping[str, str], launcher: Mapping[str, Any], group_size: int, num_processes: int
) -> None:
    """Compare the processes that were launched with those that run together.

    Where torchrun has not joined the tasks of a scheduler and no variable tells their number to accelerate, each task
    is alone. `srun` has no task for a batch script itself, so that SLURM_NTASKS does not count.

    Args:
        environment: The environment variables.
        launcher: The options of `accelerate launch`; empty without it.
        group_size: The ranks of torch's process group; 1 without one.
        num_processes: The processes that accelerate knows of.

    Raises:
        ValueError: More were launched than run together, so that each would train on everything.
    """
    asked = _numbers(environment, _WORLD_SIZES)
    if environment.get("GROUP_WORLD_SIZE") == "1" or not (asked or num_processes > 1):
        for source, tasks in _numbers(environment, _TASKS).items():
            if tasks > 1:
                raise _apart(f"{tasks} tasks of the job ({source})", "each of them alone", _REMEDY_FOR_TASKS)
    asked["the process group"] = group_size
    if "WORLD_SIZE" not in asked:
        asked["accelerate launch"] = launcher.get("num_processes") or 1
    source, launched = max(asked.items(), key=lambda item: item[1])
    if launched <= num_processes:
        return
    remedy = (
        "Where there is no GPU for each, start them on the CPU: ACCELERATE_USE_CPU=true torchrun --standalone "
        f"--nproc_per_node {launched}, and the same script and options."
    )
    if source != "accelerate launch" and _is_set(environment, "ACCELERATE_USE_CPU"):
        remedy = "Create no PartialState() before, since it ignores ACCELERATE_USE_CPU."
    raise _apart(
        f"{launched} processes that were launched ({source})", f"{num_processes} in accelerate's state", remedy
    )


def _numbers(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, int]:
    return {name: int(environment[name]) for name in names if environment.get(name, "").isdecimal()}


def _apart(launched: str, found: str, remedy: str) -> ValueError:
    return ValueError(
        f"Expected the {launched} to run together, since each would train on all images otherwise, but got {found}. "
        f"{remedy}"
    )


def refuse_sharding(kind: DistributedType | str | None) -> None:
    """Raise a `ValueError` where the weights are sharded: EMA and evaluation need complete weights.

    Args:
        kind: How accelerate distributes the run, or what `asked_sharding` or `applied_sharding` returned.
    """
    if kind in _SHARDING.values() or not (kind is None or isinstance(kind, DistributedType)):
        raise ValueError(
            "Expected complete weights on every process, since the EMA and the evaluation need them, but got "
            f"{getattr(kind, 'value', kind)}. Choose MULTI_GPU in the accelerate config, and leave out fully_shard and "
            "the like; lora, grad_checkpointing and ema_device make a large model fit (docs/scale.md, Large models)."
        )


def asked_sharding(environment: Mapping[str, str], launcher: Mapping[str, Any]) -> DistributedType | str | None:
    """Return the kind of sharding that was asked for, whether accelerate does it or not: on a CPU it does not.

    Args:
        environment: The environment variables.
        launcher: The options of `accelerate launch`; empty without it.
    """
    for option, kind in _SHARDING.items():
        if launcher.get(option) or _is_set(environment, f"ACCELERATE_{option.upper()}"):
            return kind
    if _is_set(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        for name in (f"PARALLELISM_CONFIG_{share}_SIZE" for share in _SHARES):
            if environment.get(name, "1") != "1":
                return f"{name}={environment[name]}"
    return None


def applied_sharding(accelerator: Accelerator, model: nn.Module) -> DistributedType | str | None:
    """Return the kind of sharding that code asked for: by an accelerator's plugins and configs, or on the model itself.

    Args:
        accelerator: The accelerator, whoever created it.
        model: The model as it was given.
    """
    config = getattr(accelerator, "parallelism_config", None)
    for name in (f"{share.lower()}_size" for share in _SHARES):
        if getattr(config, name, 1) != 1:
            return f"{name}={getattr(config, name)} of the accelerator"
    for path, module in model.named_modules():
        if isinstance(module, FullyShardedDataParallel | FSDPModule):
            return f"{type(module).__name__} for {path or 'the model'}"
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            return f"DTensor for {name}"
    return accelerator.distributed_type


def launcher_options() -> dict[str, Any]:
    """Return the options of the `accelerate launch` that started this process; empty without one.

    On a CPU it tells its child neither the number of processes nor the sharding (accelerate 1.15), so they are read
    from its command line and config.
    """
    if "ACCELERATE_DYNAMO_BACKEND" in os.environ:  # each of accelerate's launchers sets it
        with suppress(psutil.Error):
            parent = psutil.Process().parent()
            return {} if parent is None else options_of_command(parent.cmdline())
    return {}


def options_of_command(command: list[str]) -> dict[str, Any]:
    """Return the options of a command line of `accelerate launch` and of its config; empty for another command.

    Args:
        command: The command line in parts.
    """
    try:
        options = vars(launch_command_parser().parse_args(_after_launch(command)))
        if options["config_file"] is None and (options["cpu"] or not Path(default_config_file).is_file()):
            return options
        config = load_config_from_file(options["config_file"])
    except (SystemExit, OSError, ValueError):  # another command, or one that accelerate refuses
        return {}
    if not any(options[name] for name in ("multi_gpu", "tpu", *_SHARDING)):
        options |= {name: config.distributed_type == kind for name, kind in _SHARDING.items()}
    options["num_processes"] = options["num_processes"] or getattr(config, "num_processes", None)
    return options


def _after_launch(command: list[str]) -> list[str]:
    names = [Path(part).name for part in command]
    for name in ("launch", "launch.py", "accelerate-launch", "accelerate.commands.launch"):
        if name in names:
            return command[names.index(name) + 1 :]
    raise ValueError("This is another command.")


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")

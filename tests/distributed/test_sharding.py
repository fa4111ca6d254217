"""Sharded weights are refused, whoever asks for them: the launcher, a plugin, a config, or code on the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, ParallelismConfig
from accelerate.state import AcceleratorState, GradientState
from refusal import refused
from tiny_runs import make_trainer, tiny_data, tiny_model
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from timm_accel.distributed.launching import applied_sharding, asked_sharding, refuse_sharding
from timm_accel.distributed.processes import check_accelerator
from timm_accel.recipes import Recipe, build_run
from timm_accel.training import LoopTrainer

ROOT = Path(__file__).parents[2]
SHARDING = {
    "use_fsdp": DistributedType.FSDP,
    "use_deepspeed": DistributedType.DEEPSPEED,
    "use_megatron_lm": DistributedType.MEGATRON_LM,
}


@pytest.mark.parametrize("option", SHARDING)
def test_sharding_is_found_in_the_environment_and_at_the_launcher(option: str) -> None:
    name = f"ACCELERATE_{option.upper()}"
    assert asked_sharding({name: "true"}, {}) == asked_sharding({name: "1"}, {}) == SHARDING[option]
    assert asked_sharding({}, {option: True}) == SHARDING[option]
    assert asked_sharding({name: "false"}, {option: False}) is None
    with refused(ValueError, "complete weights", f"got {SHARDING[option].value}", "MULTI_GPU"):
        refuse_sharding(SHARDING[option])


@pytest.mark.parametrize("share", ["DP_SHARD", "TP", "CP", "SP"])
def test_shares_of_the_parallelism_config_are_sharding(share: str) -> None:
    name = f"PARALLELISM_CONFIG_{share}_SIZE"
    environment = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}
    assert asked_sharding(environment, {}) is None
    assert asked_sharding({name: "2"}, {}) is None
    assert asked_sharding(environment | {name: "2"}, {}) == f"{name}=2"
    with refused(ValueError, "complete weights", f"got {name}=2"):
        refuse_sharding(f"{name}=2")


def test_the_way_to_go_is_a_part_of_the_documentation() -> None:
    with refused(ValueError, "lora, grad_checkpointing and ema_device", "docs/scale.md, Large models"):
        refuse_sharding(DistributedType.FSDP)
    assert "\n## Large models\n" in (ROOT / "docs" / "scale.md").read_text()


class Given(LoopTrainer):
    """A trainer whose subclass creates the accelerator, with what a test gives it."""

    options: ClassVar[dict[str, Any]] = {}

    def _create_accelerator(self) -> Any:
        return Accelerator(**self.options)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.usefixtures("forgotten")
def test_a_plugin_that_an_accelerator_was_given_is_refused(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "")  # accelerate sets it
    plugin = {"fsdp_plugin": FullyShardedDataParallelPlugin(fsdp_version=version)}
    monkeypatch.setattr(Given, "options", plugin)
    trainer = make_trainer(Given)
    for work in (lambda: trainer.train(tiny_data(), 1), lambda: trainer.evaluate(tiny_data()), make_trainer):
        with refused(ValueError, "complete weights", "got FSDP", "Large models"):
            work()


@pytest.mark.parametrize("share", ["dp_shard_size", "cp_size", "sp_size"])
def test_a_parallelism_config_that_an_accelerator_was_given_is_refused(share: str) -> None:
    accelerator = make_trainer()._accelerator
    assert applied_sharding(accelerator, tiny_model()) == DistributedType.NO
    try:
        accelerator.state.parallelism_config = ParallelismConfig(dp_replicate_size=2)
        assert applied_sharding(accelerator, tiny_model()) == DistributedType.NO
        accelerator.state.parallelism_config = ParallelismConfig(**{share: 2})
        with refused(ValueError, "complete weights", f"got {share}=2 of the accelerator"):
            check_accelerator(accelerator, tiny_model())
    finally:
        accelerator.state.parallelism_config = None


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A device mesh of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


SHARDED = {
    "fully_shard": (lambda model, mesh: fully_shard(model, mesh=mesh), "FSDPSequential for the model"),
    "fully_shard of a layer": (lambda model, mesh: fully_shard(model[5], mesh=mesh), "FSDPLinear for 5"),
    "tensor parallel": (
        lambda model, mesh: parallelize_module(model, mesh, {"5": ColwiseParallel()}),
        "DTensor for 5.weight",
    ),
    "distribute_module": (distribute_module, "DTensor for 0.weight"),
}


@pytest.mark.parametrize("name", SHARDED)
def test_weights_that_code_has_sharded_are_refused(name: str, mesh: DeviceMesh) -> None:
    change, kind = SHARDED[name]
    model, trainer = tiny_model(), make_trainer()
    change(model, mesh)
    with refused(ValueError, "complete weights", f"got {kind}. Choose"):
        make_trainer(model=model)
    change(trainer.model, mesh)  # once its trainer was created
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    for work in (lambda: trainer.train(tiny_data(), 1), lambda: trainer.evaluate(tiny_data())):
        with refused(ValueError, "complete weights", f"got {kind}. Choose"):
            work()


def test_a_layer_in_torchs_older_wrapper_is_refused() -> None:
    wrapped = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(wrapped)  # its `__init__` needs a GPU
    with refused(ValueError, "complete weights", "got FullyShardedDataParallel for 1. Choose"):
        make_trainer(model=nn.Sequential(tiny_model(), wrapped))


def test_replicated_weights_are_not_refused(mesh: DeviceMesh) -> None:
    make_trainer(model=nn.parallel.DistributedDataParallel(tiny_model()))


def test_complete_weights_are_not_refused() -> None:
    for kind in (None, *(set(DistributedType) - {*SHARDING.values()})):
        refuse_sharding(kind)


@pytest.fixture
def forgotten() -> Any:
    """accelerate's state is made again, and again after the test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
@pytest.mark.usefixtures("forgotten")
def test_sharding_that_accelerate_ignores_on_a_cpu_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    monkeypatch.setenv(name, "true")
    for work in (
        make_trainer,
        lambda: trainer.train(tiny_data(), 1),
        lambda: trainer.evaluate(tiny_data()),
        lambda: build_run(Recipe(run_dir=str(tmp_path))),
    ):
        with refused(ValueError, "complete weights", name.removeprefix("ACCELERATE_USE_"), "MULTI_GPU"):
            work()

"""What a trainer answers to weights that code has sharded; `test_what_was_launched.py` starts it on two ranks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import PartialState
from tiny_runs import fit, make_trainer, tiny_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module


def sentence(work: Callable[[], Any]) -> str:
    """What the work is refused with, or nothing."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


def trained_after(change: Callable[[nn.Module], Any]) -> None:
    """Train a model that was changed after its trainer was created."""
    trainer = make_trainer()
    change(trainer.model)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    fit(trainer)


def main() -> None:
    rank = PartialState(cpu=True).process_index
    mesh = init_device_mesh("cpu", (2,))
    changed = {name: tiny_model(num_classes=4) for name in ("whole", "layer", "columns", "distributed")}
    fully_shard(changed["whole"], mesh=mesh)
    fully_shard(changed["layer"][5], mesh=mesh)
    parallelize_module(changed["columns"], mesh, {"5": ColwiseParallel()})
    distribute_module(changed["distributed"], mesh)
    found = {
        "fully_shard": sentence(lambda: make_trainer(model=changed["whole"])),
        "fully_shard of a layer": sentence(lambda: make_trainer(model=changed["layer"])),
        "fully_shard after the trainer": sentence(lambda: trained_after(lambda model: fully_shard(model, mesh=mesh))),
        "tensor parallel": sentence(lambda: make_trainer(model=changed["columns"])),
        "distribute_module": sentence(lambda: make_trainer(model=changed["distributed"])),
        "DDP": sentence(lambda: make_trainer(model=nn.parallel.DistributedDataParallel(tiny_model()))),
    }
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

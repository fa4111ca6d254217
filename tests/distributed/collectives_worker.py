"""One rank of `test_collectives.py`: trains and evaluates in several ways, and saves which collectives there were."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import Accelerator
from conftest import write_images
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from tiny_runs import fit, make_trainer, tiny_data
from torch import distributed, nn

from benchmarks.collectives import Collective, RunParts, recorded
from timm_accel import LoopTrainer, TimmMixupTrainer, create_datasets
from timm_accel.callbacks import DEFAULT_CALLBACKS, SaveBestCallback, SaveStateCallback

SYNC_EVERY = 3


def model(num_classes: int = 3, depth: int = 1) -> nn.Module:
    """A model of 3 MB, so that DDP has several gradient buckets, with `depth` layers of BatchNorm."""
    torch.manual_seed(1)
    norms = [nn.BatchNorm2d(3) for _ in range(depth)]
    layers = (nn.Linear(192, 1500), nn.ReLU(), nn.Linear(1500, 300), nn.ReLU(), nn.Linear(300, num_classes))
    return nn.Sequential(*norms, nn.Flatten(), *layers)


def images(folder: Path, updates: int, evaluated: int, num_classes: int) -> Any:
    """Datasets of image files with `updates` batches of 4 on each of the ranks."""
    counts = {f"class_{number:02}": 1 for number in range(num_classes)}
    if distributed.get_rank() == 0:
        count = updates * 4 * distributed.get_world_size()
        write_images(folder / "train", counts | {"class_00": count - num_classes + 1})
        write_images(folder / "val", counts | {"class_00": max(1, evaluated - num_classes + 1)})
    distributed.barrier()
    return create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=folder, auto_augment=None)


def train(
    name: str,
    updates: int = 8,
    evaluated: int = 10,
    num_classes: int = 3,
    depth: int = 1,
    states: bool = False,
    **options: Any,
) -> list[Collective]:
    folder = Path(sys.argv[1], f"{name} {distributed.get_world_size()}")
    data, network = images(folder / "data", updates, evaluated, num_classes), model(num_classes, depth)
    callbacks = [*DEFAULT_CALLBACKS, *([SaveStateCallback(), SaveBestCallback("accuracy")] if states else [])]
    trainer = make_trainer(
        TimmMixupTrainer,
        network,
        optimizer=create_optimizer_v2(network, "lookahead_sgd", lr=0.01),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={},
        num_class=num_classes,
        ema_decay=0.1,
        clip_grad=1.0,
        scheduler_args={"sched": "cosine", "step_on_epochs": False},
        callbacks=[*callbacks, RunParts],
        sync_every_n_updates=SYNC_EVERY,
        run_dir=folder / "run",
    )
    return recorded(lambda: fit(trainer, *data, **options))


def train_bare(updates: int) -> list[Collective]:
    """Train as DDP alone does."""

    def run() -> None:
        wrapped = nn.parallel.DistributedDataParallel(model(), broadcast_buffers=False)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
        for _ in range(updates):
            loss = nn.functional.cross_entropy(wrapped(torch.randn(4, 3, 8, 8)), torch.zeros(4, dtype=torch.int64))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return recorded(run)


def train_to_the_last_image() -> list[Collective]:
    """Train with a last batch that ranks share."""
    trainer = make_trainer(LoopTrainer, model(), callbacks=[RunParts], sync_every_n_updates=1000)
    return recorded(lambda: fit(trainer, tiny_data(27)))


def evaluate() -> list[Collective]:
    trainer = make_trainer(TimmMixupTrainer, model(), num_class=3, callbacks=[*DEFAULT_CALLBACKS, RunParts])
    return recorded(lambda: trainer.evaluate(tiny_data(10), dataloader_kwargs={"num_workers": 0}))


def results() -> dict[str, list[Collective]]:
    found = {
        "plain": train("plain"),
        "grown": train("grown", updates=14, evaluated=30, num_classes=12, depth=4, num_epochs=3),
        "states": train("states", states=True),
    }
    if distributed.get_world_size() > 2:
        return found
    return found | {
        "grown states": train("grown states", states=True, updates=14, num_classes=12, num_epochs=3),
        "accumulation": train("accumulation", gradient_accumulation_steps=4),
        "bare": train_bare(16),
        "last image": train_to_the_last_image(),
        "evaluate": evaluate(),
    }


def main() -> None:
    warnings.simplefilter("error")
    for words in ("`broadcast_buffers` is deprecated", "Profiler clears events", "barrier"):
        warnings.filterwarnings("ignore", message=words)
    accelerator = Accelerator()
    name = f"{accelerator.num_processes}_{accelerator.process_index}.json"
    Path(sys.argv[1], name).write_text(json.dumps(results()))
    accelerator.end_training()

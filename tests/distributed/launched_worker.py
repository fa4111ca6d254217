"""What each process of a launch finds out; `test_launched_processes.py` starts it with and without a CPU flag."""

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from refusal import sentence
from tiny_runs import Seen, fit, make_trainer, tiny_data
from torch import distributed
from torch.utils.data import TensorDataset

from timm_accel.distributed.processes import on_each_host
from timm_accel.features import embeddings, extract_embeddings
from timm_accel.model_soup import average_weights
from timm_accel.models import open_classifier
from timm_accel.predict import evaluate_classifier, load_classifier
from timm_accel.predict.measures import Outcomes, multiclass_metrics, outcome_rows
from timm_accel.recipes import Recipe, build_run
from timm_accel.training import LoopTrainer

FOLDER, WAY = Path(sys.argv[1]), sys.argv[2]
RESULTS: dict[str, Any] = {}


def images() -> TensorDataset:
    return TensorDataset(torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(3)), torch.arange(7))


class Unchecked(LoopTrainer):
    """A trainer that creates accelerate's `Accelerator` by itself, as a user's may."""

    def _create_accelerator(self) -> Accelerator:
        return Accelerator()


def apart() -> None:
    """On a CPU without ``ACCELERATE_USE_CPU``; accelerate then knows of one process."""
    model, _ = open_classifier(FOLDER / "model")
    RESULTS["trainer"] = sentence(make_trainer)
    RESULTS["embeddings"] = sentence(lambda: extract_embeddings(model, images()))
    RESULTS["recipe"] = sentence(
        lambda: build_run(
            Recipe(data_dir=str(FOLDER / "data"), run_dir=str(FOLDER / f"run{os.environ['RANK']}"), model="test_resnet")
        )
    )
    trainer = make_trainer(Unchecked)
    RESULTS["train"] = sentence(lambda: fit(trainer))
    RESULTS["evaluate"] = sentence(lambda: trainer.evaluate(tiny_data(), dataloader_kwargs={"num_workers": 0}))
    RESULTS["updates"], RESULTS["processes"] = trainer.num_updates, PartialState().num_processes
    environment = {name: os.environ.pop(name, None) for name in ("WORLD_SIZE", "LOCAL_RANK")}
    RESULTS["group"] = sentence(make_trainer)
    os.environ.update({name: value for name, value in environment.items() if value is not None})
    os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState()
    RESULTS["too early"] = sentence(make_trainer)


def together() -> None:
    """With ``ACCELERATE_USE_CPU``; all that may come before a trainer comes before it."""
    soup = average_weights([FOLDER / "model", FOLDER / "model"], out=FOLDER / f"soup{os.getpid()}")
    evaluate_classifier(soup, str(FOLDER / "data"))
    load_classifier(soup).predict([FOLDER / "data/val/a/000.png"], progress=False)
    RESULTS["state is unmade"] = PartialState._shared_state == {}
    model, _ = open_classifier(FOLDER / "model")
    write, embeddings._write = embeddings._write, lambda *args: (time.sleep(0.3), write(*args))
    file = FOLDER / f"embeddings{os.environ['WORLD_SIZE']}.npz"
    RESULTS["embeddings"] = torch.tensor(extract_embeddings(model, images(), file, batch_size=2).features)
    RESULTS["file is written"] = file.exists()
    state = PartialState()
    RESULTS["processes"] = state.num_processes
    first = FOLDER / f"first{state.num_processes}"
    RESULTS["made by"] = on_each_host(state, lambda: (time.sleep(0.3), first.touch(), state.process_index)[-1])
    RESULTS["came after"] = first.exists()
    trainer = fit(make_trainer(Seen), tiny_data(24), per_device_batch_size=12 // state.num_processes)
    RESULTS["images"] = torch.stack(trainer.images)
    trainer.evaluate(tiny_data(7), dataloader_kwargs={"num_workers": 0})
    RESULTS["loss"] = trainer.run_history.get_latest_metric("evaluation_loss")
    right = float(state.process_index == 0)
    label = torch.tensor([0])
    outcomes = Outcomes.of_rows(outcome_rows(torch.tensor([[right, 1 - right]]), label), label)
    RESULTS["own"] = multiclass_metrics(outcomes, 2)


def main() -> None:
    {"apart": apart, "together": together}[WAY]()
    torch.save(RESULTS, FOLDER / f"{WAY}_{os.environ['WORLD_SIZE']}_{os.environ['RANK']}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()

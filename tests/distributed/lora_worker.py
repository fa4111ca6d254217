"""Train adapters on one or several ranks; `test_lora_on_two_processes.py` starts it and compares what it leaves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import PartialState
from tiny_runs import fit, make_trainer
from torch.utils.data import TensorDataset

from timm_accel.mixins import ModelEmaMixin
from timm_accel.models import create_classifier

GLOBAL_BATCH = 8


def main() -> None:
    state = PartialState(cpu=True)
    torch.manual_seed(state.process_index)  # DDP gives all ranks the adapters of rank 0
    model, _ = create_classifier("test_vit", 3, image_size=32, lora=4, grad_checkpointing=True)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    trainer = make_trainer(
        ModelEmaMixin,
        model,
        optimizer=torch.optim.SGD((each for each in model.parameters() if each.requires_grad), lr=0.1),
        ema_decay=0.5,
    )
    fit(trainer, TensorDataset(images, torch.arange(16) % 3), per_device_batch_size=GLOBAL_BATCH // state.num_processes)
    weights = {"model": trainer.get_unwrapped_model().state_dict(), "ema": trainer.ema_model.module.state_dict()}
    torch.save(weights, Path(sys.argv[1]) / f"{state.num_processes}_{state.process_index}.pt")


if __name__ == "__main__":
    main()

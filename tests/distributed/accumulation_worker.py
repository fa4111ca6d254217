"""One rank of `test_accumulation_on_ranks.py`: trains in several ways, and saves the weights and the images seen."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data

from timm_accel import LoopTrainer, TimmTrainer

BATCH, EPOCHS, LR = 4, 2, 0.1
COUNTS = (43, 25, 24, 13)


class Wrong(BatchSampler):
    """Promises more or fewer batches than it gives."""

    off = 0

    def __len__(self) -> int:
        return super().__len__() + self.off


def linear() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def numbered(count: int) -> TensorDataset:
    """Images that carry their number in the first pixel."""
    images, labels = tiny_data(64).tensors
    images = images[:count].clone()
    images[:, 0, 0, 0] = torch.arange(count) / 100
    return TensorDataset(images, labels[:count])


class Seen(LoopTrainer):
    def training_run_start(self) -> None:
        self.seen: list[int] = []
        super().training_run_start()

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.seen += (batch[0][:, 0, 0, 0] * 100).round().int().tolist()
        return super().calculate_train_batch_loss(batch)


def train(count: int, accumulation: int, **loader: Any) -> dict[str, Any]:
    trainer = make_trainer(Seen, linear())
    options = {**NO_WORKERS, "shuffle": False, **loader}
    if "batch_sampler" in options:
        del options["shuffle"]
    fit(
        trainer,
        numbered(count),
        num_epochs=EPOCHS,
        per_device_batch_size=BATCH,
        gradient_accumulation_steps=accumulation,
        train_dataloader_kwargs=options,
    )
    return {"weights": trainer.model.state_dict(), "seen": trainer.seen, "updates": trainer.num_updates}


def dropped(count: int) -> int:
    class Drops(Seen, TimmTrainer):
        """The default of the ready-made trainers."""

    trainer = fit(make_trainer(Drops, linear()), numbered(count), num_epochs=1, per_device_batch_size=BATCH)
    return len(trainer.seen)


def results() -> dict[str, Any]:
    found: dict[str, Any] = {f"{count}/{steps}": train(count, steps) for count in COUNTS for steps in (1, 2, 3)}
    for off in (-1, 1, 2):
        batches = Wrong(SequentialSampler(range(24)), BATCH, drop_last=False)
        batches.off = off * 3
        found[f"wrong {off}"] = train(24, 4, batch_sampler=batches)
    found["dropped"] = dropped(43)
    return found


def main() -> None:
    mine, group = results(), torch.distributed
    torch.save(mine, Path(sys.argv[1], f"{group.get_world_size()}_{group.get_rank()}.pt"))
    group.destroy_process_group()

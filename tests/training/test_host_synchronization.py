"""No step waits for the device, beyond what the optimizer itself reads back."""

from collections.abc import Callable

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from benchmarks.update_cost import Operators
from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import DEFAULT_CALLBACKS

BATCH_SIZE = 4


def reads_of(run: Callable[[int], object], batches: int) -> int:
    with Operators() as operators:
        run(batches)
    return operators.counts["host reads"]


def train(batches: int) -> None:
    model = tiny_model()
    trainer = make_trainer(
        TimmMixupTrainer,
        model,
        optimizer=torch.optim.AdamW(model.parameters()),
        loss_func=SoftTargetCrossEntropy(),
        mixup_args={},
        num_class=3,
        ema_decay=0.5,
        clip_grad=1.0,
        scheduler_args={"sched": "cosine", "step_on_epochs": False},
        callbacks=DEFAULT_CALLBACKS,
        sync_every_n_updates=1000,
    )
    fit(trainer, tiny_data(batches * BATCH_SIZE), num_epochs=1, per_device_batch_size=BATCH_SIZE)


def train_bare(batches: int) -> None:
    model, loss_fn = tiny_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(batches):
        loss_fn(model(torch.randn(BATCH_SIZE, 3, 8, 8)), torch.zeros(BATCH_SIZE, dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("capsys")
def test_a_longer_run_reads_back_no_more_than_a_bare_loop() -> None:
    more = reads_of(train, 24) - reads_of(train, 12)
    bare = reads_of(train_bare, 24) - reads_of(train_bare, 12)
    assert bare > 0  # AdamW on the CPU reads its step counters
    assert more == bare


@pytest.mark.usefixtures("capsys")
def test_the_loss_is_read_back_at_sync_points_only() -> None:
    def agreeing(every: int) -> int:
        trainer = make_trainer(callbacks=DEFAULT_CALLBACKS, sync_every_n_updates=every)
        with Operators() as operators:
            fit(trainer, tiny_data(48), num_epochs=1)
        return operators.counts["host reads"]

    assert agreeing(4) - agreeing(1000) == 12 // 4

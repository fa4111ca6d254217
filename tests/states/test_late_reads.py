"""Values of a device are read one sync point late, and all of them before a state, the end of an epoch and a stop."""

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refused
from tiny_runs import NO_WORKERS, as_on_a_gpu, fit, make_trainer, tiny_data
from torch.utils.data import TensorDataset

from timm_accel import TimmTrainer
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback, SaveStateCallback
from timm_accel.losses import LabelCheck
from timm_accel.mixins import ModelEmaMixin
from timm_accel.states.folder import STATES, state_folders
from timm_accel.states.late_reads import LateReads

SYNC = {"sync_every_n_updates": 2}
SENTENCE = "Expected the training loss to be finite, but it is not in epoch 1, after"


def noting(reads: LateReads, seen: list[float]) -> Callable[[float], None]:
    return lambda value: reads.begin(torch.tensor(value), lambda copy: seen.append(copy.item()))


def test_a_value_is_looked_at_one_sync_point_later() -> None:
    seen: list[float] = []
    note = noting(reads := LateReads(as_on_a_gpu), seen)
    for point in range(4):
        note(point)
        note(point + 0.5)
        assert seen == [number / 2 for number in range(2 * max(0, point - 1))]
        reads.look()
    reads.look_at_all()
    assert seen == [number / 2 for number in range(8)]
    reads.look_at_all()
    assert len(seen) == 8


def test_a_copy_keeps_the_value_of_the_moment_at_which_it_began() -> None:
    reads, value, seen = LateReads(as_on_a_gpu), torch.zeros(2), []
    reads.begin(value, lambda copy: seen.append(copy.tolist()))
    value.fill_(5)
    reads.look_at_all()
    assert seen == [[0.0, 0.0]]


def test_a_value_on_the_cpu_is_looked_at_at_once() -> None:
    seen: list[float] = []
    noting(LateReads(), seen)(3.0)
    assert seen == [3.0]


class Infecting(Callback):
    """Makes the running loss NaN after an update."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.num_updates == self.at - 1:
            trainer.running_loss.total.fill_(nan)


def ends(*callbacks: Any, seen: int, ended: int, num_images: int = 32, **options: Any) -> None:
    """Train until the loss is found to be NaN after `seen` updates, by a run that ends after `ended`."""
    trainer = make_trainer(callbacks=[*callbacks, *DEFAULT_CALLBACKS], **SYNC, **options)
    with refused(RuntimeError, f"{SENTENCE} {seen} updates"):
        fit(trainer, tiny_data(num_images), num_epochs=1)
    assert trainer.num_updates == ended


@pytest.mark.usefixtures("late", "capsys")
def test_a_loss_that_is_not_finite_ends_the_run_one_sync_point_later_and_names_its_update() -> None:
    ends(Infecting(1), seen=2, ended=4)
    ends(Infecting(3), seen=4, ended=6)


@pytest.mark.usefixtures("late", "capsys")
def test_the_end_of_an_epoch_looks_at_everything() -> None:
    ends(Infecting(5), seen=6, ended=7, num_images=28)


@pytest.mark.usefixtures("late", "capsys")
def test_no_state_is_written_and_no_run_stops_before_its_loss_is_looked_at(tmp_path: Path) -> None:
    class Stopping(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 4:
                trainer.request_stop("enough")

    ends(Infecting(3), Stopping(), seen=4, ended=4)
    saving = SaveStateCallback(every_n_updates=4)
    ends(Infecting(3), saving, seen=4, ended=4, run_dir=tmp_path / "run")
    assert state_folders(tmp_path / "run" / STATES) == []


@pytest.mark.usefixtures("late")
def test_ema_weights_that_are_not_finite_are_found_one_sync_point_later() -> None:
    class Breaking(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 1:
                trainer.ema_model.module[5].bias.data[0] = nan

    trainer = make_trainer(ModelEmaMixin, callbacks=[Breaking], ema_decay=0.1, **SYNC)
    with refused(RuntimeError, "but 5.bias is not in epoch 1, after 2 updates"):
        fit(trainer, tiny_data(32), num_epochs=1)
    assert trainer.num_updates == 4


class OnADevice(TimmTrainer):
    """Checks labels as on a GPU."""

    def before_prepare(self) -> None:
        super().before_prepare()
        self._label_check = LabelCheck(3, torch.device("cpu"))
        self._label_check._found = torch.zeros(4, dtype=torch.int64)


@pytest.mark.usefixtures("late")
def test_a_label_out_of_range_is_found_one_sync_point_later() -> None:
    labels = torch.arange(32) % 3
    labels[6] = 4
    trainer = make_trainer(OnADevice, num_classes=3, **SYNC)
    with refused(RuntimeError, "Expected labels to be from 0 to 2", "got 4 for image 2 of batch 1"):
        data = TensorDataset(tiny_data(32).tensors[0], labels)
        fit(trainer, data, num_epochs=1, train_dataloader_kwargs=NO_WORKERS | {"shuffle": False})
    assert trainer.num_updates == 4


@pytest.mark.usefixtures("late")
def test_the_bar_shows_the_loss_of_the_sync_point_before() -> None:
    class Asking(Callback):
        def __init__(self) -> None:
            self.means: list[float] = []
            self.shown: list[float | None] = []

        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            self.means.append(trainer.running_loss.average)
            self.shown.append(trainer.running_loss.last_average)

    asking = Asking()
    fit(make_trainer(callbacks=[*DEFAULT_CALLBACKS[:2], asking], sync_every_n_updates=1), num_epochs=1)
    assert asking.shown == [None, None, *asking.means[:2]]

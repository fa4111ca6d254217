"""Traps of saving and resuming: with the library's own call it goes wrong, with ours it does not."""

import errno
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from pytorch_accelerated.callbacks import (
    CallbackMethodNotImplementedError,
    EarlyStoppingCallback,
    SaveTrainingStateCallback,
)
from pytorch_accelerated.trainer import Trainer
from resumed_runs import Augmented, cut, every_update, make_run, states, train
from timm.scheduler import CosineLRScheduler, create_scheduler_v2
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data, tiny_model
from torch import nn
from torch.utils.data import DataLoader, Dataset

from timm_accel import LoopTrainer
from timm_accel.callbacks import SaveStateCallback
from timm_accel.mixins import TimmSchedulerMixin
from timm_accel.states.folder import open_state
from timm_accel.states.saved_state import COMMON
from timm_accel.training.snapshot import stateful_callbacks


class Order(Dataset):
    """Notes the images in the order in which they are asked for."""

    def __init__(self) -> None:
        self.data, self.order = tiny_data(16), []

    def __getitem__(self, index: int) -> Any:
        self.order.append(index)
        return self.data[index]

    def __len__(self) -> int:
        return 16


def upstreams(**options: Any) -> Any:
    model = tiny_model()
    settings = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "callbacks": ()} | options
    return Trainer(model, nn.CrossEntropyLoss(), **settings)


def step_lr(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3)


def run_upstreams(trainer: Any, dataset: Any = None, num_epochs: int = 2, **options: Any) -> Any:
    trainer.train(
        dataset or tiny_data(16), num_epochs, per_device_batch_size=4, train_dataloader_kwargs=NO_WORKERS, **options
    )
    return trainer


def test_upstream_cannot_load_the_second_state_of_a_run(tmp_path: Path) -> None:
    trainer = run_upstreams(upstreams(), create_scheduler_fn=step_lr)
    for number in (1, 2):
        trainer.save_training_state(tmp_path / str(number))
    with pytest.raises(RuntimeError, match="Number of custom checkpoints"):
        run_upstreams(upstreams(), create_scheduler_fn=step_lr, resume_from=tmp_path / "2")
    ours = fit(make_trainer(), tiny_data(16), create_scheduler_fn=step_lr)
    for number in (1, 2):
        ours.save_training_state(tmp_path / f"ours{number}")
    fit(make_trainer(), create_scheduler_fn=step_lr).load_training_state(tmp_path / "ours2")


def test_upstream_trains_more_epochs_than_were_left(tmp_path: Path) -> None:
    whole, rest = Order(), Order()
    saver = SaveTrainingStateCallback(str(tmp_path), save_every_n_epochs=1, save_at_end=False)
    run_upstreams(upstreams(callbacks=[saver]), whole, 3)
    run_upstreams(upstreams(), rest, 3, resume_from=tmp_path / "epoch_1")
    assert len(whole.order) == 3 * 16
    assert len(rest.order) > 2 * 16  # more than the two epochs that were left

    whole, rest = Order(), Order()
    kept = SaveStateCallback(keep=9, keep_when_done=9)
    fit(make_trainer(run_dir=tmp_path / "whole", callbacks=[kept]), whole, num_epochs=3)
    resumed_dir = cut(tmp_path / "whole", 0, tmp_path / "cut")
    resumed = fit(
        make_trainer(run_dir=resumed_dir, callbacks=[SaveStateCallback]), rest, num_epochs=3, resume_from="auto"
    )
    assert rest.order == whole.order[16:]
    assert resumed.run_history.current_epoch == 4


def test_upstream_saves_a_step_before_its_update(tmp_path: Path) -> None:
    saver = SaveTrainingStateCallback(str(tmp_path), save_every_n_steps=2, save_at_end=False)
    trainer = upstreams(callbacks=[saver])
    first = {name: value.clone() for name, value in tiny_model().state_dict().items()}
    run_upstreams(trainer, num_epochs=1, max_num_train_steps=2)
    from safetensors.torch import load_file

    saved = load_file(next(tmp_path.rglob("model.safetensors")))
    assert not torch.equal(saved["5.weight"], trainer.model.state_dict()["5.weight"])  # an update is missing
    assert not torch.equal(saved["5.weight"], first["5.weight"])

    ours = make_trainer(run_dir=tmp_path / "ours", callbacks=[SaveStateCallback(every_n_updates=2, keep_when_done=9)])
    fit(ours, num_epochs=1, max_num_train_steps=2)
    state = open_state(states(tmp_path / "ours")[0])
    assert state.folder.name.endswith("epoch_0_batch_2")
    assert torch.equal(state.load(COMMON)["model"]["5.weight"], ours.model.state_dict()["5.weight"])


def test_accelerates_random_states_run_code_when_loaded_and_ours_do_not(tmp_path: Path) -> None:
    trainer = run_upstreams(upstreams(), num_epochs=1)
    trainer.save_training_state(tmp_path / "theirs")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(next((tmp_path / "theirs").glob("random_states*")), weights_only=True)
    train(make_run(tmp_path / "ours"), num_epochs=1)
    for name in open_state(states(tmp_path / "ours")[-1]).manifest["files"]:
        torch.load(states(tmp_path / "ours")[-1] / name, weights_only=True)


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")
def test_timms_plateau_forgets_its_counters_and_ours_are_kept() -> None:
    def plateau() -> Any:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        options = {"sched": "plateau", "patience_epochs": 3, "warmup_epochs": 0, "num_epochs": 20, "decay_rate": 0.5}
        return create_scheduler_v2(optimizer, **options)[0]

    before, theirs, ours = plateau(), plateau(), plateau()
    for epoch in range(1, 4):
        before.step(epoch, 0.0)
    theirs.load_state_dict(before.state_dict())
    trainer = make_trainer(TimmSchedulerMixin)
    trainer.scheduler = before
    state = trainer.scheduler_state()
    trainer.scheduler = ours
    assert trainer.restore_scheduler(state, same_length=True) is False

    def epoch_of_drop(scheduler: Any) -> int:
        for epoch in range(4, 20):
            scheduler.step(epoch, 0.0)
            if scheduler.optimizer.param_groups[0]["lr"] < 1:
                return epoch
        return 20

    drops = {
        name: epoch_of_drop(scheduler) for name, scheduler in (("theirs", theirs), ("ours", ours), ("not cut", before))
    }
    assert drops["ours"] == drops["not cut"] < drops["theirs"]


def test_timms_schedules_load_their_old_length_and_ours_are_rebuilt(tmp_path: Path) -> None:
    def cosine(length: int) -> CosineLRScheduler:
        return CosineLRScheduler(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), length)

    longer = cosine(20)
    longer.load_state_dict(cosine(10).state_dict())
    assert longer.t_initial == 10

    train(make_run(tmp_path), num_epochs=2)
    trainer = train(make_run(tmp_path), num_epochs=4, resume_from="auto")
    assert trainer.scheduler.t_initial == 4 * 7


def test_upstreams_callbacks_raise_when_asked_whether_they_have_a_state() -> None:
    stopping = EarlyStoppingCallback()
    with pytest.raises(CallbackMethodNotImplementedError):
        hasattr(stopping, "state_dict")
    trainer = make_trainer(LoopTrainer, callbacks=[stopping])
    assert stateful_callbacks(trainer) == {}


def test_torch_hides_a_full_disk_behind_a_runtime_error(tmp_path: Path) -> None:
    class Full:
        def __init__(self) -> None:
            self.written = 0

        def write(self, data: Any) -> int:
            self.written += len(data)
            if self.written > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(data)

        def flush(self) -> None: ...

    with pytest.raises(RuntimeError, match="unexpected pos"):
        torch.save(torch.zeros(10_000), Full())
    from timm_accel.states.folder import _save

    with pytest.raises(OSError, match="No space left"):
        _save(torch.zeros(10_000), Full())


def test_accelerates_resume_sees_other_images_and_ours_does_not(tmp_path: Path) -> None:
    """The shuffle is no part of accelerate's state; here it depends on (seed, epoch) alone."""

    def prepared() -> tuple[Accelerator, Any]:
        accelerator = Accelerator(cpu=True)
        return accelerator, accelerator.prepare(DataLoader(range(16), 4, shuffle=True))

    torch.manual_seed(0)
    accelerator, loader = prepared()
    whole = []
    for number, batch in enumerate(loader):
        whole.append(batch.tolist())
        if number == 1:
            accelerator.save_state(tmp_path / "theirs")
    accelerator, loader = prepared()
    accelerator.load_state(tmp_path / "theirs")
    assert [batch.tolist() for batch in skip_first_batches(loader, 2)] != whole[2:]

    data, rest = Augmented(16), Augmented(16)
    fit(make_trainer(run_dir=tmp_path / "whole", callbacks=[every_update()]), data)
    resumed_dir = cut(tmp_path / "whole", 1, tmp_path / "cut")
    torch.manual_seed(123)  # whatever the process has drawn meanwhile
    fit(make_trainer(run_dir=resumed_dir), rest, resume_from="auto")
    assert rest.loaded == data.loaded[8:]


def test_a_resume_in_a_later_epoch_has_its_images_where_accelerate_forgets_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate 1.13 and 1.14 let a loader whose first batches are skipped begin with epoch 0; 1.15 does not."""

    def as_in_1_14(loader: Any, start: int) -> Any:
        rest = skip_first_batches(loader, start)
        rest.iteration = 0
        return rest

    data, rest = Augmented(16), Augmented(16)
    fit(make_trainer(run_dir=tmp_path / "whole", callbacks=[every_update()]), data, num_epochs=2)
    assert data.loaded[:16] != data.loaded[16:]
    resumed_dir = cut(tmp_path / "whole", 6, tmp_path / "cut")
    monkeypatch.setattr("timm_accel.training.loaders.skip_first_batches", as_in_1_14)
    fit(make_trainer(run_dir=resumed_dir), rest, num_epochs=2, resume_from="auto")
    assert rest.loaded == data.loaded[24:]

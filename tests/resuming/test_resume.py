"""A run that was cut and resumed ends in the same bits as one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import (
    BATCH_SIZE,
    EPOCHS,
    Augmented,
    Noting,
    cut,
    every_update,
    make_run,
    outcome,
    same_outcome,
    states,
    train,
)
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import IterableDataset

from timm_accel import LoopTrainer
from timm_accel.callbacks import Callback, SaveStateCallback
from timm_accel.training.identity import describe_run
from timm_accel.upstream import DataLoaderSlice


def ends_alike(whole: list[torch.Tensor], rest: list[torch.Tensor]) -> bool:
    """Whether the batches of a resumed run are the last of the uninterrupted one, image for image."""
    return all(torch.equal(a, b) for a, b in zip(rest, whole[len(whole) - len(rest) :], strict=True))


def by_epochs(run_dir: Path, kind: type = Noting, **options: Any) -> Any:
    """A run that saves at the end of each epoch: it ends as one that saves after each update."""
    return make_run(run_dir, kind, saves=SaveStateCallback(), **options)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda count: f"accumulation={count}")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, int]:
    """An uninterrupted run of 7 batches an epoch: with accumulation 2 and 3 its last group is shorter."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, train(make_run(run_dir), gradient_accumulation_steps=request.param), request.param


def test_a_run_cut_at_any_update_ends_in_the_same_bits(whole, tmp_path: Path) -> None:
    run_dir, reference, accumulation = whole
    updates = -(-7 // accumulation)
    assert len(states(run_dir)) == EPOCHS * (updates + 1)  # after each update, and at the end of each epoch
    for number in range(len(states(run_dir)) - 1):
        resumed_dir = cut(run_dir, number, tmp_path / str(number))
        resumed = train(by_epochs(resumed_dir), gradient_accumulation_steps=accumulation, resume_from="auto")
        assert same_outcome(run_dir, resumed_dir) is None, states(run_dir)[number]
        assert same_weights(resumed.model, reference.model)
        assert same_weights(resumed.ema_model.module, reference.ema_model.module)
        assert resumed.num_updates == reference.num_updates == EPOCHS * updates
        done = EPOCHS * updates - len(resumed.rates)
        assert resumed.rates == reference.rates[done:]
        assert ends_alike(reference.images, resumed.images)


def test_the_comparison_sees_another_seed_and_another_length(whole, tmp_path: Path) -> None:
    run_dir, reference, accumulation = whole
    other = train(make_run(tmp_path / "other", seed=5), gradient_accumulation_steps=accumulation)
    assert same_outcome(run_dir, tmp_path / "other") is not None
    assert not same_weights(other.model, reference.model)
    assert reference.rates != other.rates[:-1]


def test_the_history_file_has_no_row_twice(whole, tmp_path: Path) -> None:
    run_dir, _, accumulation = whole
    middle = len(states(run_dir)) // 2
    resumed_dir = cut(run_dir, middle, tmp_path / "run")
    with open(resumed_dir / "history.csv", "a") as file:
        file.write("4,0.1,half a ro")  # as a kill may leave it
    train(make_run(resumed_dir), gradient_accumulation_steps=accumulation, resume_from="auto")
    rows = (resumed_dir / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]


@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (1, False), (2, False), (2, True)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_images_continue_one_by_one_whatever_the_workers(
    num_workers: int, persistent: bool, accumulation: int, tmp_path: Path
) -> None:
    options = {"gradient_accumulation_steps": accumulation, "num_epochs": 2}
    loader = {"num_workers": num_workers} | ({"persistent_workers": persistent} if num_workers else {})
    reference = train(make_run(tmp_path / "whole"), **options)
    middle = len(states(tmp_path / "whole")) // 4
    resumed_dir = cut(tmp_path / "whole", middle, tmp_path / "cut")
    resumed = train(make_run(resumed_dir), resume_from="auto", train_dataloader_kwargs=loader, **options)
    assert 7 < len(resumed.images) < 14  # within the first epoch
    assert ends_alike(reference.images, resumed.images)
    assert same_outcome(tmp_path / "whole", resumed_dir) is None


class Failing(Noting):
    """Ends with an exception in a given micro-batch, counted over the run."""

    fails_at = 0

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        if len(self.images) == self.fails_at:
            raise KeyError("a bug of the user's")
        return super().calculate_train_batch_loss(batch)


@pytest.mark.parametrize("fails_at", [1, 3, 5, 7, 9])
def test_a_group_that_was_cut_inside_is_done_again_from_its_start(fails_at: int, tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "num_epochs": 2}
    train(make_run(tmp_path / "whole"), **options)
    failing = make_run(tmp_path / "cut", Failing)
    failing.fails_at = fails_at
    with pytest.raises(KeyError) as caught:
        train(failing, **options, resume_from="auto")
    written = states(tmp_path / "cut")
    if written:  # nothing is written on an exception; the last state stands, and the error names it
        (note,) = caught.value.__notes__
        assert str(written[-1]) in note
        assert "resume_from='auto'" in note
    train(make_run(tmp_path / "cut"), **options, resume_from="auto")
    assert same_outcome(tmp_path / "whole", tmp_path / "cut") is None


@pytest.mark.parametrize("number", [0, 5])
def test_no_image_is_loaded_again_for_what_was_already_seen(number: int, tmp_path: Path) -> None:
    train(make_run(tmp_path / "whole"), num_epochs=1)
    resumed_dir = cut(tmp_path / "whole", number, tmp_path / "cut")
    dataset = Augmented()
    train(make_run(resumed_dir), train_dataset=dataset, num_epochs=1, resume_from="auto")
    assert len(dataset.loaded) == (7 - 1 - number) * BATCH_SIZE


# Stateful parts

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine by epochs": {"sched": "cosine", "warmup_epochs": 2, "step_on_epochs": True},
    "cosine without warm-up": {"sched": "cosine", "warmup_epochs": 0, "step_on_epochs": True, "min_lr": 1e-7},
    "noise": {"sched": "cosine", "warmup_epochs": 0, "step_on_epochs": False, "noise": [0.1, 0.9]},
    "multistep": {"sched": "multistep", "decay_milestones": [1, 2], "warmup_epochs": 0},
    "plateau": {"sched": "plateau", "patience_epochs": 0, "warmup_epochs": 0, "decay_rate": 0.5},
}


class Rising(Noting):
    """Records a score that gets worse, so that a plateau schedule has something to do."""

    def training_run_epoch_end(self) -> None:
        self.run_history.update_metric("score", -float(self.run_history.current_epoch // 2))
        super().training_run_epoch_end()


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")
@pytest.mark.parametrize("name", SCHEDULES)
def test_timms_schedules_continue(name: str, tmp_path: Path) -> None:
    options = {"scheduler_args": SCHEDULES[name], "scheduler_metric": "score"}
    reference = train(make_run(tmp_path / "whole", Rising, **options), num_epochs=6)
    assert len(set(reference.rates)) > 1
    for number in range(0, len(states(tmp_path / "whole")) - 1, 3):
        resumed_dir = cut(tmp_path / "whole", number, tmp_path / str(number))
        resumed = train(by_epochs(resumed_dir, Rising, **options), num_epochs=6, resume_from="auto")
        assert resumed.rates == reference.rates[len(reference.rates) - len(resumed.rates) :]
        assert same_outcome(tmp_path / "whole", resumed_dir) is None


TORCH_SCHEDULES = {
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=22),
    "multistep": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9, 15]),
    "sequential": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16),
        ],
        [5],
    ),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
}


@pytest.mark.parametrize("name", TORCH_SCHEDULES)
def test_torchs_schedules_continue(name: str, tmp_path: Path) -> None:
    def run(run_dir: Path, make: Callable[..., Any], **options: Any) -> Any:
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = make(run_dir, Rising, model=model, optimizer=optimizer, scheduler_args=None)
        return train(trainer, create_scheduler_fn=TORCH_SCHEDULES[name], **options)

    reference = run(tmp_path / "whole", make_run)
    assert len(set(reference.rates)) > 1
    for number in range(0, len(states(tmp_path / "whole")) - 1, 4):
        resumed_dir = cut(tmp_path / "whole", number, tmp_path / str(number))
        resumed = run(resumed_dir, by_epochs, resume_from="auto")
        assert resumed.rates == reference.rates[len(reference.rates) - len(resumed.rates) :]
        assert same_outcome(tmp_path / "whole", resumed_dir) is None


def test_a_torch_schedule_gets_the_length_of_a_longer_run(tmp_path: Path) -> None:
    def run(run_dir: Path, num_epochs: int, **options: Any) -> Any:
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def one_cycle(optimizer: Any) -> Any:
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=7 * num_epochs + 1)

        trainer = make_run(run_dir, model=model, optimizer=optimizer, scheduler_args=None)
        return train(trainer, num_epochs=num_epochs, create_scheduler_fn=one_cycle, **options)

    run(tmp_path / "run", 2)
    longer = run(tmp_path / "run", 4, resume_from="auto")
    assert longer.rates == run(tmp_path / "other", 4).rates[14:]
    assert longer.optimizer.param_groups[0]["momentum"] == pytest.approx(0.95, abs=0.01)  # it cycles the momentum too


@pytest.mark.parametrize("every", [3, "epoch"])
def test_ema_weights_that_are_updated_less_often_continue(every: Any, tmp_path: Path) -> None:
    train(make_run(tmp_path / "whole", ema_update_every=every), num_epochs=6)
    for number in (1, 4, 8, 12, 30):
        resumed_dir = cut(tmp_path / "whole", number, tmp_path / str(number))
        train(by_epochs(resumed_dir, ema_update_every=every), num_epochs=6, resume_from="auto")
        assert same_outcome(tmp_path / "whole", resumed_dir) is None


def test_ema_weights_in_bfloat16_round_after_a_resume_as_before(tmp_path: Path) -> None:
    def run(run_dir: Path, **options: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).to(torch.bfloat16)
        data = tiny_data(30)
        data.tensors = (data.tensors[0].to(torch.bfloat16), data.tensors[1])
        trainer = make_run(
            run_dir,
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            loss_func=nn.CrossEntropyLoss(),
            mixup_args=None,
            ema_decay=0.5,
            callbacks=[every_update()],
        )
        return train(trainer, train_dataset=data, eval_dataset=None, **options)

    run(tmp_path / "whole")
    resumed_dir = cut(tmp_path / "whole", 4, tmp_path / "cut")
    run(resumed_dir, resume_from="auto")
    assert same_outcome(tmp_path / "whole", resumed_dir) is None


class Centre(nn.Module):
    """A loss with a state: it follows the mean of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * logits.detach().mean(0)
        return nn.functional.cross_entropy(logits - self.mean, targets)


def test_a_loss_with_a_state_continues(tmp_path: Path) -> None:
    def run(run_dir: Path, **options: Any) -> Any:
        trainer = make_trainer(LoopTrainer, loss_func=Centre(), run_dir=run_dir, callbacks=[every_update()])
        return fit(trainer, tiny_data(31), **options)

    assert run(tmp_path / "whole").loss_func.mean.abs().sum() > 0
    resumed_dir = cut(tmp_path / "whole", 3, tmp_path / "cut")
    run(resumed_dir, resume_from="auto")
    assert same_outcome(tmp_path / "whole", resumed_dir) is None


class Counting(Callback):
    """A user's callback with a state."""

    def __init__(self) -> None:
        self.updates = 0

    def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
        self.updates = 0  # as upstream's callbacks do

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]


def test_a_users_callback_is_restored_after_its_start_has_reset_it(tmp_path: Path) -> None:
    fit(make_trainer(run_dir=tmp_path / "whole", callbacks=[Counting, every_update()]))
    resumed_dir = cut(tmp_path / "whole", 4, tmp_path / "cut")
    counting = Counting()
    fit(make_trainer(run_dir=resumed_dir, callbacks=[counting, every_update()]), resume_from="auto")
    assert counting.updates == 8
    assert outcome(resumed_dir)["state"]["common.pt"]["callbacks"]["Counting"] == {"updates": 8}


def test_upstreams_callbacks_have_no_state_and_are_not_asked(tmp_path: Path) -> None:
    from pytorch_accelerated.callbacks import EarlyStoppingCallback, LogMetricsCallback

    callbacks = [LogMetricsCallback, EarlyStoppingCallback, SaveStateCallback()]
    fit(make_trainer(run_dir=tmp_path, callbacks=callbacks), eval_dataset=tiny_data(7))
    assert outcome(tmp_path)["state"]["common.pt"]["callbacks"] == {}


# Loaders


def limited(run_dir: Path, **options: Any) -> Any:
    class Limit(Callback):
        def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
            trainer._train_dataloader = DataLoaderSlice(trainer._train_dataloader, 5)  # as upstream's callback does

    callbacks = [every_update(), Limit]
    return fit(make_trainer(Noting, run_dir=run_dir, callbacks=callbacks, ema_decay=0.2), **options)


def test_a_limited_loader_continues_up_to_its_limit(tmp_path: Path) -> None:
    data = Augmented(30)
    reference = limited(tmp_path / "whole", train_dataset=data)
    resumed_dir = cut(tmp_path / "whole", 2, tmp_path / "cut")
    resumed = limited(resumed_dir, train_dataset=data, resume_from="auto")
    assert len(reference.images) == 10
    assert len(resumed.images) == 7
    assert same_outcome(tmp_path / "whole", resumed_dir) is None


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_data(20))

    def __len__(self) -> int:
        return 20


class ListLoader(Noting):
    def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
        data = tiny_data(20)
        return [data[index : index + 4] for index in range(0, 20, 4)]


@pytest.mark.parametrize(("kind", "dataset"), [(Noting, Stream()), (ListLoader, tiny_data(20))])
def test_other_loaders_are_read_up_to_where_the_run_stood(kind: type, dataset: Any, tmp_path: Path) -> None:
    def run(run_dir: Path, **options: Any) -> Any:
        trainer = make_trainer(kind, run_dir=run_dir, callbacks=[every_update()], ema_decay=0.2)
        return fit(trainer, dataset, **options)

    reference = run(tmp_path / "whole")
    resumed_dir = cut(tmp_path / "whole", 2, tmp_path / "cut")
    resumed = run(resumed_dir, resume_from="auto")
    assert ends_alike(reference.images, resumed.images)
    assert same_outcome(tmp_path / "whole", resumed_dir) is None


class Unordered:
    """A batch sampler of the user's that draws its own order."""

    def __iter__(self):
        order = torch.randperm(28).tolist()
        return iter([order[start : start + 4] for start in range(0, 28, 4)])

    def __len__(self) -> int:
        return 7


def test_a_custom_order_continues_from_the_end_of_an_epoch(tmp_path: Path) -> None:
    def run(run_dir: Path, **options: Any) -> Any:
        loader = {"num_workers": 0, "batch_sampler": Unordered()}
        return train(
            make_run(run_dir), train_dataset=tiny_data(28), num_epochs=2, train_dataloader_kwargs=loader, **options
        )

    reference = run(tmp_path / "whole")
    torch.manual_seed(77)
    resumed = run(cut(tmp_path / "whole", 7, tmp_path / "cut"), resume_from="auto")
    assert ends_alike(reference.images, resumed.images)
    assert same_outcome(tmp_path / "whole", tmp_path / "cut") is None


def test_what_a_user_changed_in_the_optimizer_continues(tmp_path: Path) -> None:
    class Calmer(Callback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            for group in trainer.optimizer.param_groups:
                group["momentum"] = 0.5

    def run(run_dir: Path, **options: Any) -> Any:
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        callbacks = [every_update(), Calmer]
        return train(make_run(run_dir, model=model, optimizer=optimizer, callbacks=callbacks), **options)

    run(tmp_path / "whole")
    run(cut(tmp_path / "whole", 10, tmp_path / "cut"), resume_from="auto")
    assert same_outcome(tmp_path / "whole", tmp_path / "cut") is None


def test_one_trainer_may_continue_with_its_own_run(tmp_path: Path) -> None:
    def linear(length: int) -> Any:
        return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7 * length)

    def make(run_dir: Path) -> Any:
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return make_run(run_dir, model=model, optimizer=optimizer, scheduler_args=None)

    trainer = train(make(tmp_path / "one"), num_epochs=2, create_scheduler_fn=linear(2))
    train(trainer, num_epochs=4, create_scheduler_fn=linear(4), resume_from="auto")
    reference = train(make(tmp_path / "other"), num_epochs=4, create_scheduler_fn=linear(4))
    assert trainer.rates[14:] == reference.rates[14:]


def test_a_learning_rate_that_is_scaled_from_the_batch_size_may_differ_from_the_state() -> None:
    def described(lr: float, **recipe: Any) -> dict[str, Any]:
        model = tiny_model()
        return describe_run(model, torch.optim.SGD(model.parameters(), lr=lr), tiny_data(), 0, recipe)

    assert described(0.1, base_batch_size=256) == described(0.2, base_batch_size=256)
    assert described(0.1, base_batch_size=None) != described(0.2, base_batch_size=None)

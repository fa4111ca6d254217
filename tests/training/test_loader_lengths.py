"""The loader's end closes an accumulation group, whatever its length promises; updates are means over their images."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from refusal import refused
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from timm_accel import LoopTrainer, TimmTrainer

LR = 0.1


def linear() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def by_hand(updates: list[torch.Tensor], epochs: int, count: int = 64) -> nn.Module:
    """Train with one full batch for each update: the images of these numbers."""
    images, labels = tiny_data(count).tensors
    model, loss_fn = linear(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(epochs):
        for numbers in updates:
            loss_fn(model(images[numbers]), labels[numbers]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def chunks(count: int, size: int) -> list[torch.Tensor]:
    return list(torch.arange(count).split(size))


def assert_close(trained: nn.Module, wanted: nn.Module) -> None:
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


class Promises(IterableDataset):
    """Gives `given` samples, but has another length."""

    def __init__(self, promised: int, given: int) -> None:
        self.promised, self.data = promised, [tiny_data(64)[number] for number in range(given)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def __len__(self) -> int:
        return self.promised


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("promised", [12, 13, 16, 20, 8, 4])
@pytest.mark.parametrize(("accumulation", "updates"), [(4, [12]), (3, [12]), (2, [8, 4]), (1, [4, 4, 4])])
def test_an_iterable_of_another_length_trains_on_all_that_it_gives(
    promised: int, accumulation: int, updates: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(model=linear())
    fit(trainer, Promises(promised, 12), num_epochs=3, gradient_accumulation_steps=accumulation)
    assert trainer.num_updates == 3 * len(updates)
    assert_close(trainer.model, by_hand(list(torch.arange(12).split(updates)), 3))
    said = capsys.readouterr().out
    right = -(-promised // 4) == 3
    assert said.count("gave 3 in epoch 1") == (0 if right else 1)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_gradients_of_a_short_epoch_do_not_leak_into_the_next() -> None:
    leftover = []

    class Looks(LoopTrainer):
        def train_epoch_start(self) -> None:
            leftover.extend(parameter.grad for parameter in self.model.parameters())
            super().train_epoch_start()

    fit(make_trainer(Looks, linear()), Promises(16, 12), num_epochs=2, gradient_accumulation_steps=2)
    assert leftover
    assert all(gradient is None for gradient in leftover)


class WrongLength(BatchSampler):
    def __init__(self, count: int, off: int) -> None:
        super().__init__(SequentialSampler(range(count)), 4, drop_last=False)
        self.off = off

    def __len__(self) -> int:
        return super().__len__() + self.off


@pytest.mark.parametrize("off", [-2, -1, 1, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_batch_sampler_of_another_length_trains_on_all_that_it_gives(off: int, accumulation: int) -> None:
    trainer = make_trainer(model=linear())
    loader = {**NO_WORKERS, "batch_sampler": WrongLength(14, off)}
    fit(trainer, tiny_data(64), num_epochs=2, gradient_accumulation_steps=accumulation, train_dataloader_kwargs=loader)
    assert_close(trainer.model, by_hand(chunks(14, 4 * accumulation), 2))


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_epoch_without_a_batch_is_an_error(accumulation: int) -> None:
    class Once(Promises):
        def __iter__(self) -> Iterator[Any]:
            data, self.data = self.data, []
            return iter(data)

    with refused(ValueError, "at least one batch in each epoch", "got none in epoch 2", "3 by its length"):
        fit(make_trainer(model=linear()), Once(12, 12), gradient_accumulation_steps=accumulation)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_limit_of_steps_holds_for_a_loader_of_another_length() -> None:
    trainer = make_trainer(model=linear())
    fit(trainer, Promises(8, 12), num_epochs=9, max_num_train_steps=5)
    assert trainer.num_updates == 5


@pytest.mark.parametrize("images", [29, 28, 32, 25, 33])
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (8, 1)])
def test_accumulation_is_the_large_batch_in_the_tail_too(images: int, batch: int, accumulation: int) -> None:
    trainer = make_trainer(model=linear())
    loader = {**NO_WORKERS, "shuffle": False}
    data = TensorDataset(*(tensor[:images] for tensor in tiny_data(64).tensors))
    fit(
        trainer,
        data,
        num_epochs=3,
        per_device_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        train_dataloader_kwargs=loader,
    )
    assert_close(trainer.model, by_hand(chunks(images, 8), 3))


class Unequal(BatchSampler):
    """Batches of these sizes."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[list[int]]:
        return (part.tolist() for part in torch.arange(sum(self.sizes)).split(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)


@pytest.mark.parametrize("sizes", [[1, 7, 4, 4], [5, 3, 8, 8], [2, 2, 2, 1, 1], [6, 6, 1]])
def test_micro_batches_of_any_sizes_count_by_their_images(sizes: list[int]) -> None:
    trainer = make_trainer(model=linear())
    loader = {**NO_WORKERS, "batch_sampler": Unequal(sizes)}
    fit(trainer, tiny_data(64), num_epochs=2, gradient_accumulation_steps=2, train_dataloader_kwargs=loader)
    pairs = [sum(sizes[start : start + 2]) for start in range(0, len(sizes), 2)]
    assert_close(trainer.model, by_hand(list(torch.arange(sum(sizes)).split(pairs)), 2))


def test_full_groups_have_the_bits_of_losses_divided_by_their_number() -> None:
    images, labels = tiny_data(24).tensors
    model, loss_fn = linear(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for start in range(0, 24, 12):
        for micro in range(start, start + 12, 4):
            (loss_fn(model(images[micro : micro + 4]), labels[micro : micro + 4]) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    trainer = make_trainer(model=linear())
    options = {"num_epochs": 1, "gradient_accumulation_steps": 3}
    fit(trainer, tiny_data(24), **options, train_dataloader_kwargs={**NO_WORKERS, "shuffle": False})
    assert same_weights(trainer.model, model)


def test_the_ready_made_trainers_drop_the_last_batch_and_keep_it_when_told() -> None:
    def images_seen(kind: type[LoopTrainer], **loader: Any) -> int:
        seen = []

        class Counts(kind):  # type: ignore[misc, valid-type]
            def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
                seen.append(len(batch[1]))
                return super().calculate_train_batch_loss(batch)

        fit(make_trainer(Counts), tiny_data(15), num_epochs=1, train_dataloader_kwargs={**NO_WORKERS, **loader})
        return sum(seen)

    assert images_seen(TimmTrainer) == 12
    assert images_seen(TimmTrainer, drop_last=False) == 15
    assert images_seen(LoopTrainer) == 15
    assert images_seen(LoopTrainer, drop_last=True) == 12


def test_a_loader_of_the_user_without_a_batch_size_is_weighted_too() -> None:
    class Whole(LoopTrainer):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            return DataLoader(self.train_dataset, batch_sampler=Unequal([3, 5, 4]))

    trainer = make_trainer(Whole, linear())
    fit(trainer, tiny_data(64), num_epochs=1, gradient_accumulation_steps=3)
    assert_close(trainer.model, by_hand([torch.arange(12)], 1))

"""The two rules: the same images and the same draws, whoever loads them and when."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import Seen, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, WeightedRandomSampler

from timm_accel import TimmMixupTrainer
from timm_accel.data.seeding import KeyedSampler, SampleKey, SeededDataset, mix_seed, seed_step, seeded


class Augmented(Dataset):
    """Data whose every draw differs, by each of the three generators."""

    def __init__(self, count: int = 20) -> None:
        self.data = tiny_data(count)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.data[index]
        return image + random.random() + np.random.rand() + torch.rand(()), label

    def __len__(self) -> int:
        return len(self.data)


def train(num_workers: int, persistent: bool = False, **options: Any) -> tuple[Any, list[torch.Tensor]]:
    loader = {"num_workers": num_workers, "persistent_workers": persistent}
    trainer = make_trainer(
        TimmMixupTrainer,
        tiny_model(),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=torch.nn.CrossEntropyLoss(),
        mixup_args={"cutmix_alpha": 1.0},
        num_class=3,
        ema_decay=0.5,
        **options,
    )
    random.seed(num_workers), np.random.seed(num_workers), torch.manual_seed(num_workers)
    return fit(trainer, Augmented(), Augmented(7), train_dataloader_kwargs=loader, eval_dataloader_kwargs=loader)


@pytest.fixture(scope="module")
def reference() -> Any:
    return train(0)


@pytest.mark.parametrize(("num_workers", "persistent"), [(1, False), (2, False), (2, True)])
def test_workers_change_no_bit(reference: Any, num_workers: int, persistent: bool) -> None:
    trainer = train(num_workers, persistent)
    assert same_weights(trainer.model, reference.model)
    assert same_weights(trainer.ema_model.module, reference.ema_model.module)
    assert trainer.run_history._metrics == reference.run_history._metrics


def test_another_seed_changes_the_run(reference: Any) -> None:
    assert not same_weights(train(0, seed=1).model, reference.model)


def test_epochs_differ_in_order_and_draws_and_repeat_with_the_seed() -> None:
    first, second = (fit(make_trainer(Seen), Augmented(16)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.images, second.images, strict=True))
    one, two = torch.cat(first.images[:4]), torch.cat(first.images[4:])
    assert not torch.equal(one, two)
    assert not torch.allclose(one.mean((1, 2, 3)).sort().values, two.mean((1, 2, 3)).sort().values)


def test_evaluation_draws_the_same_images_in_every_epoch() -> None:
    model = tiny_model()
    trainer = make_trainer(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)
    )  # the model stays as it is
    fit(trainer, Augmented(), Augmented(8), num_epochs=3)
    trainer.evaluate(Augmented(8), per_device_batch_size=4, dataloader_kwargs={"num_workers": 0})
    (first,) = trainer.run_history.get_metric_values("evaluation_loss")
    trainer.evaluate(Augmented(8), per_device_batch_size=4, dataloader_kwargs={"num_workers": 0})
    assert trainer.run_history.get_metric_values("evaluation_loss") == [first]


def test_a_users_own_sampler_is_keyed_and_reseeded_too() -> None:
    def order(seed: int) -> list[torch.Tensor]:
        sampler = WeightedRandomSampler([1.0] * 16, 16)
        options = {"num_workers": 0, "sampler": sampler}
        return fit(make_trainer(Seen, seed=seed), Augmented(16), train_dataloader_kwargs=options).images

    assert all(torch.equal(a, b) for a, b in zip(order(3), order(3), strict=True))
    assert not torch.equal(order(3)[0], order(4)[0])


def test_a_sampler_that_draws_from_the_global_state_is_seeded_too() -> None:
    class Global(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(torch.randperm(16).tolist())

        def __len__(self) -> int:
            return 16

    def order(seed: int, state: int) -> list[torch.Tensor]:
        trainer = make_trainer(Seen, seed=seed)
        torch.manual_seed(state)
        return fit(trainer, Augmented(16), train_dataloader_kwargs={"num_workers": 0, "sampler": Global()}).images

    assert all(torch.equal(a, b) for a, b in zip(order(3, 0), order(3, 1), strict=True))
    assert not torch.equal(order(3, 0)[0], order(4, 0)[0])


def test_a_users_own_dataloader_is_keyed_too() -> None:
    class Own(Seen):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> DataLoader:
            return DataLoader(self.train_dataset, batch_size, shuffle=True)

    first, second = (fit(make_trainer(Own), Augmented(16)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.images, second.images, strict=True))


def test_repeated_draws_of_one_image_differ() -> None:
    dataset = SeededDataset(Augmented(), seed=0)
    first, repeated = dataset[SampleKey(0, 0, 5)][0], dataset[SampleKey(0, 1, 5)][0]
    assert not torch.equal(first, repeated)
    assert torch.equal(dataset[SampleKey(0, 0, 5)][0], first)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = KeyedSampler(torch.utils.data.RandomSampler(range(50)), seed)
        sampler.set_epoch(epoch)
        return [key.sample for key in sampler]

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


def test_seed_step_seeds_every_generator_and_separates_ranks() -> None:
    def draws(*numbers: int) -> tuple[float, float, float]:
        seed_step(*numbers, torch.device("cpu"))
        return random.random(), np.random.rand(), torch.rand(()).item()

    first = draws(0, 1, 2, 3)
    assert draws(0, 1, 2, 3) == first
    for other in ((1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4)):
        assert all(a != b for a, b in zip(draws(*other), first, strict=True))


def test_one_number_is_mixed_as_splitmix64_does() -> None:
    assert mix_seed(0) == 0xE220A8397B1DCDAF  # the first output of the reference implementation seeded with 0
    assert mix_seed(2**64 - 1, 5) < 2**64


def test_mixed_seeds_do_not_collide() -> None:
    seeds = {mix_seed(0, epoch, position) for epoch in range(100) for position in range(1000)}
    assert len(seeds) == 100_000
    assert len({seed & 0xFFFFFFFF for seed in seeds}) > 99_980  # numpy takes 32 bits; 1.2 collisions are expected


def test_the_wrapper_forwards_attributes_but_not_batched_fetching() -> None:
    subset = Subset(tiny_data(), [3, 1])
    dataset = SeededDataset(subset, seed=0)
    assert dataset.indices == [3, 1]
    assert len(dataset) == 2
    assert not hasattr(dataset, "__getitems__")  # it would be called with keys
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0][0], subset[0][0])
    assert seeded(dataset, 1).dataset is subset


def test_an_iterable_dataset_is_left_alone() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tiny_data(8))

        def __len__(self) -> int:
            return 8

    stream = Stream()
    assert seeded(stream, 0) is stream
    trainer = fit(make_trainer(), stream)
    assert trainer.num_updates == 4

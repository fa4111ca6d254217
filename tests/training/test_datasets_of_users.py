"""What is set on the trainer's datasets reaches the user's own, as under upstream."""

from typing import Any

import pytest
import torch
from timm.data import ImageDataset, create_loader
from tiny_runs import NO_WORKERS, Seen, fit, make_trainer, tiny_data
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from timm_accel import LoopTrainer
from timm_accel.callbacks import Callback


class Moded(Dataset):
    """Adds its mode to each image; it has the names that a wrapper might use."""

    def __init__(self) -> None:
        self.data, self.mode, self.seed, self.dataset = tiny_data(), 0.0, "mine", "mine too"

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.data[index]
        return image * 0 + self.mode, label

    def __len__(self) -> int:
        return len(self.data)

    def switch(self, mode: float) -> None:
        self.mode = mode


class SetsMode(Callback):
    def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.epoch == 1:
            trainer.train_dataset.mode = 1.0


class CallsSwitch(Callback):
    def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.epoch == 1:
            trainer.train_dataset.switch(1.0)


class DeletesMode(Callback):
    def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.epoch == 1:
            trainer.train_dataset.__class__ = type("Reset", (Moded,), {"mode": 1.0})
            del trainer.train_dataset.mode


@pytest.mark.parametrize("callback", [SetsMode, CallsSwitch, DeletesMode])
@pytest.mark.parametrize("loader", [NO_WORKERS, {"num_workers": 1}, {}])
def test_a_change_between_epochs_reaches_the_dataset_and_its_workers(callback: type, loader: dict) -> None:
    dataset = Moded()
    trainer = fit(make_trainer(Seen, callbacks=[callback]), dataset, train_dataloader_kwargs=loader)
    first, second = (torch.cat(trainer.images[start : start + 4]).unique().tolist() for start in (0, 4))
    assert (first, second) == ([0.0], [1.0])
    assert trainer.train_dataset is dataset
    assert (dataset.seed, dataset.dataset) == ("mine", "mine too")


def test_what_is_set_on_the_evaluation_set_is_evaluated() -> None:
    seen = []

    class Sees(LoopTrainer):
        def eval_epoch_start(self) -> None:
            self.eval_dataset.mode = 3.0
            super().eval_epoch_start()

        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            seen.append(batch[0].unique().tolist())
            return super().calculate_eval_batch_loss(batch)

    trainer = make_trainer(Sees)
    trainer.evaluate(Moded(), per_device_batch_size=8, dataloader_kwargs=NO_WORKERS)
    assert seen == [[3.0], [3.0]]


def test_timms_loader_sets_its_transform_on_the_dataset_itself(image_folder: Any) -> None:
    class TimmLoader(Seen):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            return create_loader(
                self.train_dataset, (3, 8, 8), batch_size, is_training=True, use_prefetcher=False, num_workers=0
            )

    dataset = ImageDataset(str(image_folder / "train"))
    trainer = fit(make_trainer(TimmLoader), dataset)
    assert dataset.transform is not None
    assert {tuple(images.shape[1:]) for images in trainer.images} == {(3, 8, 8)}


def test_a_dataset_wrapped_in_a_loader_of_the_users_draws_from_the_seed_too() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image + torch.rand(()), label

    class Halves(Seen):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            return DataLoader(Subset(self.train_dataset, range(8)), batch_size, shuffle=True, **train_dl_kwargs)

    def images(workers: int) -> list[torch.Tensor]:
        dataset = Noisy(*tiny_data().tensors)
        return fit(make_trainer(Halves), dataset, train_dataloader_kwargs={"num_workers": workers}).images

    assert all(map(torch.equal, images(0), images(2)))


def test_a_loader_that_is_used_for_two_runs_gives_each_the_same_images() -> None:
    class Keeps(Seen):
        loader = None

        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            self.loader = self.loader or DataLoader(self.train_dataset, batch_size, shuffle=True)
            return self.loader

    trainer = make_trainer(Keeps)
    first = fit(trainer).images
    second = fit(trainer).images
    assert all(map(torch.equal, first, second))


class ReadsBatches(Dataset):
    """Has no way to read one sample."""

    def __init__(self) -> None:
        self.images, self.labels = tiny_data().tensors

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        noise = torch.rand(())
        return [(self.images[index] + noise, self.labels[index]) for index in indices]

    def __len__(self) -> int:
        return len(self.images)


@pytest.mark.parametrize("loader", [NO_WORKERS, {"num_workers": 2}])
def test_a_dataset_that_reads_batches_alone_is_read_so_and_drawn_from_the_seed(loader: dict[str, int]) -> None:
    first = fit(make_trainer(Seen, seed=3), ReadsBatches(), train_dataloader_kwargs=loader).images
    again = fit(make_trainer(Seen, seed=3), ReadsBatches(), train_dataloader_kwargs=NO_WORKERS).images
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0].sort().values, first[4].sort().values)  # epochs draw other noise

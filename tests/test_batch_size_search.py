"""The search for the largest batch size counts memory per image, doubles until it is full, and steps for real."""

from typing import Any

import pytest
import torch
from tiny_runs import NO_WORKERS, make_trainer, needs_gpu, tiny_data, tiny_model
from torch import nn

from timm_accel import TimmMixupTrainer, TimmTrainer, batch_size_search
from timm_accel.batch_size_search import MAX_BATCH_SIZE, find_batch_size


def find(trainer: Any, count: int = 4000, **options: Any) -> int:
    return find_batch_size(trainer, tiny_data(count), train_dataloader_kwargs=NO_WORKERS, **options)


class _Linear(nn.Module):
    """Keeps its input, 192 floats an image, and the output of the first layer, 100 floats."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 100), nn.Linear(100, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images.flatten(1)))


def of_image() -> int:
    loss = 3 * 4 + 8  # the probabilities and the label
    return (192 + 100) * 4 + loss


@pytest.mark.parametrize(("images", "size"), [(70, 64), (64, 64), (63, 32), (3.5, 2)])
def test_the_activations_of_a_cpu_take_half_of_the_free_memory(
    images: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size_search, "free_memory", lambda: 2 * images * of_image())
    assert find(make_trainer(model=_Linear())) == size


def test_the_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size_search, "free_memory", lambda: 2 * 70 * of_image())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert find(make_trainer(model=_Linear())) == 32


def test_no_memory_for_a_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size_search, "free_memory", lambda: of_image())
    with pytest.raises(MemoryError, match="Expected a batch of 2 images to fit into memory"):
        find(make_trainer(model=_Linear()), even=True)


@pytest.mark.parametrize(
    ("count", "even", "size"), [(21, False, 21), (21, True, 20), (1024, True, 1024), (4000, False, MAX_BATCH_SIZE)]
)
def test_it_is_at_most_the_training_images_and_the_limit(count: int, even: bool, size: int) -> None:
    assert find(make_trainer(), count, even=even) == size


@pytest.mark.parametrize(
    ("most", "limit", "size"),
    [(100, 4000, 96), (64, 4000, 64), (33, 4000, 32), (2, 4000, 2), (50, 50, 50), (49, 50, 48)],
)
def test_it_doubles_until_memory_is_full(most: int, limit: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps are real, with EMA weights and Mixup; an error of a full memory stands for a GPU."""
    monkeypatch.setattr(batch_size_search._SearchTrainer, "_on_cpu", batch_size_search._SearchTrainer._on_gpu)

    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_model()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return self.body(images)

    trainer = make_trainer(
        TimmMixupTrainer, Full(), mixup_args={"mixup_alpha": 1.0}, num_class=3, eval_loss_fn=nn.CrossEntropyLoss()
    )
    assert find(trainer, limit, even=True) == size


def test_another_error_is_not_taken_for_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size_search._SearchTrainer, "_on_cpu", batch_size_search._SearchTrainer._on_gpu)
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find(make_trainer(model=model))


@pytest.mark.gpu
@needs_gpu
def test_the_batch_size_of_a_gpu_trains_and_its_double_does_not() -> None:
    def trainer() -> Any:
        model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 3))
        return make_trainer(TimmTrainer, model)

    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.empty(int(0.9 * total) - 40_000_000, dtype=torch.uint8, device="cuda")
    size = find(trainer())
    assert 1 < size < MAX_BATCH_SIZE
    torch.cuda.set_per_process_memory_fraction(0.9)
    options = {"train_dataloader_kwargs": NO_WORKERS, "num_epochs": 1, "max_num_train_steps": 2}
    trainer().train(tiny_data(4000), per_device_batch_size=size, **options)
    with pytest.raises(torch.OutOfMemoryError):
        trainer().train(tiny_data(4000), per_device_batch_size=4 * size, **options)
    torch.cuda.set_per_process_memory_fraction(1.0)
    del held

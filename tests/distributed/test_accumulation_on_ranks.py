"""Accumulation on two and three ranks against a loop by hand over all images: no image twice, updates are means."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accumulation_worker import BATCH, COUNTS, EPOCHS, LR, linear, numbered
from ranks import launch
from torch import nn

WORKER = Path(__file__).parent / "accumulation_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(WORKER, [2, 3], tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{request.param}_{rank}.pt", weights_only=True) for rank in range(request.param)]


def updates(count: int, processes: int, accumulation: int) -> list[list[int]]:
    """The images of each update: all ranks' batches; fewer images than ranks join the batch before them."""
    size = BATCH * processes
    batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    if len(batches) > 1 and len(batches[-1]) < processes:
        rest = batches.pop()
        batches[-1] += rest
    starts = range(0, len(batches), accumulation)
    return [[*chain(*batches[start : start + accumulation])] for start in starts]


def by_hand(groups: list[list[int]], count: int) -> dict[str, torch.Tensor]:
    images, labels = numbered(count).tensors
    model, loss_fn = linear(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(EPOCHS):
        for numbers in groups:
            loss_fn(model(images[numbers]), labels[numbers]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def assert_same(found: list[dict[str, Any]], wanted: dict[str, torch.Tensor]) -> None:
    for rank in found:
        for name, tensor in wanted.items():
            torch.testing.assert_close(rank["weights"][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("count", COUNTS)
def test_every_image_comes_once_an_epoch_and_updates_are_means_over_them(
    ranks: Any, count: int, accumulation: int
) -> None:
    found = [rank[f"{count}/{accumulation}"] for rank in ranks]
    assert sorted(number for rank in found for number in rank["seen"]) == sorted([*range(count)] * EPOCHS)
    groups = updates(count, len(ranks), accumulation)
    assert {rank["updates"] for rank in found} == {EPOCHS * len(groups)}
    assert_same(found, by_hand(groups, count))


@pytest.mark.parametrize("off", [-1, 1, 2])
def test_a_length_that_is_wrong_changes_no_update(ranks: Any, off: int) -> None:
    found = [rank[f"wrong {off}"] for rank in ranks]
    assert_same(found, by_hand(updates(24, len(ranks), 4), 24))


def test_the_ready_made_trainers_drop_what_fills_no_batch_on_every_rank(ranks: Any) -> None:
    assert [rank["dropped"] for rank in ranks] == [43 // (BATCH * len(ranks)) * BATCH] * len(ranks)

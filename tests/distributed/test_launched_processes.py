"""1, 2 and 3 processes of one launch: they train together, or they are refused before training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_images
from ranks import launch

from timm_accel.models import create_classifier, save_classifier

WORKER = Path(__file__).parent / "launched_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("launched")
    for split in ("train", "val"):
        write_images(root / "data" / split, {"a": 3, "b": 3}, size=32)
    torch.manual_seed(0)
    save_classifier(create_classifier("test_resnet", 2, image_size=32)[0], root / "model", ["a", "b"])
    return root


@pytest.fixture(scope="module", params=[1, 2, 3])
def processes(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def launched_apart(folder: Path) -> Path:
    return launch(WORKER, [1, 2, 3], folder, "apart", variables={})


@pytest.fixture(scope="module")
def launched_together(folder: Path) -> Path:
    return launch(WORKER, [1, 2, 3], folder, "together")


@pytest.fixture(scope="module")
def apart(launched_apart: Path, processes: int) -> list[dict[str, Any]]:
    return [torch.load(launched_apart / f"apart_{processes}_{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def together(launched_together: Path, processes: int) -> list[dict[str, Any]]:
    return [
        torch.load(launched_together / f"together_{processes}_{rank}.pt", weights_only=True)
        for rank in range(processes)
    ]


@pytest.mark.parametrize("work", ["trainer", "train", "evaluate", "embeddings", "recipe", "group", "too early"])
def test_processes_that_do_not_know_of_each_other_are_refused(work: str, processes: int, apart: Any) -> None:
    for rank in apart:
        assert rank["processes"] == 1
        if processes == 1:
            assert rank[work] == ""
            continue
        source = "the process group" if work == "group" else "WORLD_SIZE"
        assert rank[work].startswith(
            f"ValueError: Expected the {processes} processes that were launched ({source}) to run together"
        )
        assert "but got 1 in accelerate's state" in rank[work]
        remedy = (
            "Create no PartialState() before" if work == "too early" else f"--standalone --nproc_per_node {processes}"
        )
        assert remedy in rank[work]


def test_nothing_is_trained_before_the_refusal(processes: int, apart: Any) -> None:
    assert [rank["updates"] for rank in apart] == [8 if processes == 1 else 0] * processes


def test_what_comes_before_a_trainer_leaves_the_processes_together(processes: int, together: Any) -> None:
    for rank in together:
        assert rank["state is unmade"]
        assert rank["processes"] == processes
        assert torch.equal(rank["embeddings"], together[0]["embeddings"])
        assert rank["embeddings"].shape[0] == 7
        assert rank["file is written"]
        assert rank["loss"] == together[0]["loss"]


def test_each_image_of_an_epoch_goes_to_one_process(processes: int, together: Any) -> None:
    for epoch in range(2):
        shares = [rank["images"][2 * epoch : 2 * epoch + 2].flatten(0, 1) for rank in together]
        assert all(len(share) == 24 // processes for share in shares)
        assert len({image.numpy().tobytes() for image in torch.cat(shares)}) == 24


def test_an_evaluation_measures_the_images_of_its_process_alone(together: Any) -> None:
    found = [(rank["own"]["accuracy"], rank["own"]["f1_macro"]) for rank in together]
    assert found == [(1.0, 1.0)] + [(0.0, 0.0)] * (len(together) - 1)  # the report of a run is that of rank 0 alone


def test_the_first_of_a_host_works_for_the_others_which_wait(processes: int, together: Any) -> None:
    assert [rank["made by"] for rank in together] == [0] * processes
    assert all(rank["came after"] for rank in together)

"""A cross-validation that is cut and resumed ends in the same bits, also on two ranks."""

from pathlib import Path

import pytest
import torch
from conftest import write_images
from ranks import launch

from timm_accel.predict import Scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    data = write_images(folder / "data", {"cat": 9, "dog": 9})
    return launch(Path(__file__).with_name("folds_worker.py"), [2, 0], folder, str(data))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_cut_cross_validation_ends_in_the_same_bits(ranks: int, folder: Path) -> None:
    whole, cut = (Scores.from_parquet(folder / str(ranks) / name / "out_of_fold.parquet") for name in ("whole", "cut"))
    assert torch.equal(whole.probabilities, cut.probabilities)
    assert whole.paths == cut.paths
    assert len(whole) == 18
    results = [(folder / str(ranks) / name / "cross_validation.json").read_text() for name in ("whole", "cut")]
    assert results[0] == results[1]

"""Evaluation losses and metrics are those of the whole set in one batch, on one, two and three processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_worker import LOSSES, NUM_CLASSES, SIZES, WEIGHTS, data, model
from ranks import launch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

WORKER = Path(__file__).parent / "evaluation_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(WORKER, [1, 2, 3], tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module", params=[1, 2, 3])
def ranks(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{request.param}_{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.fixture(scope="module")
def counted() -> tuple[np.ndarray, np.ndarray]:
    """The logits and labels of the images that are not ignored."""
    images, labels = data().tensors
    with torch.no_grad():
        logits = model().eval()(images).double()
    return logits[labels >= 0].numpy(), labels[labels >= 0].numpy()


def expected_loss(name: str, logits: np.ndarray, labels: np.ndarray) -> float:
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    weights = np.ones(NUM_CLASSES) if name == "plain" else WEIGHTS.double().numpy()
    smoothing = 0.1 if name == "smoothed" else 0.0
    hard, of_labels = -logs[np.arange(len(labels)), labels], weights[labels]
    total = (1 - smoothing) * (hard * of_labels).sum() - smoothing / NUM_CLASSES * (logs * weights).sum()
    return total if name == "sum" else total / of_labels.sum()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_that_of_one_batch(ranks: Any, counted: Any, name: str, size: int) -> None:
    for rank in ranks:
        assert rank[f"{name} {size}"]["evaluation_loss"] == pytest.approx(expected_loss(name, *counted), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_metrics_are_those_of_one_process_worked_out_by_hand(ranks: Any, counted: Any, size: int) -> None:
    logits, labels = counted
    predictions = logits.argmax(1)
    f1 = []
    for each in sorted({*predictions, *labels}):
        right = ((predictions == each) & (labels == each)).sum()
        f1.append(2 * right / ((predictions == each).sum() + (labels == each).sum()))
    top5 = np.argsort(-logits, axis=1)[:, :5]
    expected = {
        "accuracy": (predictions == labels).mean(),
        "f1_macro": np.mean(f1),
        "accuracy_top5": (top5 == labels[:, None]).any(1).mean(),
    }
    assert 3 < len(f1) < NUM_CLASSES  # some classes are predicted alone, some are absent
    for rank in ranks:
        found = rank[f"plain {size}"]
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    given = torch.from_numpy(logits), torch.from_numpy(labels)
    assert expected["f1_macro"] == pytest.approx(MulticlassF1Score(NUM_CLASSES)(*given).item())
    top = MulticlassAccuracy(NUM_CLASSES, average="micro", top_k=5)
    assert expected["accuracy_top5"] == pytest.approx(top(*given).item())


def test_ignored_labels_alone_are_an_error_on_every_rank(ranks: Any) -> None:
    assert all("all of the 30 images" in rank["ignored"] for rank in ranks)

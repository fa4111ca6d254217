"""Temperature scaling: it makes overconfident logits honest, and stays with the model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refused
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from trained_runs import Trained, brightness, trained_run

from timm_accel import evaluate_classifier, load_classifier
from timm_accel.export import export
from timm_accel.predict import fit_temperature
from timm_accel.predict.calibration import best_temperature


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The run that all tests of predictions share."""
    return trained_run()


def overconfident(factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `factor` times what the labels were drawn by."""
    logits = torch.randn(400, 4).double() * 2
    return logits * factor, torch.multinomial(logits.softmax(dim=1), 1).flatten()


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_the_temperature_is_that_of_the_least_likelihood(factor: float) -> None:
    logits, labels = overconfident(factor)
    found = best_temperature(logits, labels)
    assert found == pytest.approx(factor, rel=0.25)
    losses = {scale: cross_entropy(logits / (found * scale), labels).item() for scale in (0.99, 1.0, 1.01)}
    assert min(losses, key=losses.__getitem__) == 1.0
    assert factor == 1.0 or losses[1.0] < cross_entropy(logits, labels).item() - 0.01


def test_multi_label_classes_count_separately() -> None:
    logits = torch.randn(400, 3).double()
    targets = torch.bernoulli(logits.sigmoid())
    found = best_temperature(logits * 4, targets.float())
    assert found == pytest.approx(4, rel=0.3)
    losses = [binary_cross_entropy_with_logits(logits * 4 / (found * scale), targets) for scale in (0.99, 1.0, 1.01)]
    assert min(losses) == losses[1]


def test_data_that_tell_no_temperature_are_refused() -> None:
    with refused(ValueError, "an image that the classifier gets wrong", "got 3 without", "more held-out images"):
        best_temperature(torch.eye(3).double(), torch.arange(3))
    with refused(ValueError, "an image that the classifier gets wrong"):
        best_temperature(torch.eye(3).double() - 0.5, torch.eye(3))
    with refused(ValueError, "temperature from 0.01 to 100.0", "guesses"):
        best_temperature(torch.eye(3).double(), torch.tensor([1, 2, 0]))


def test_the_temperature_stays_with_the_folder_and_is_used(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run / "best", tmp_path / "best")
    before = evaluate_classifier(tmp_path, trained.data)
    classifier = load_classifier(tmp_path)
    run = classifier.run
    classifier.run = lambda images: 20 * run(images)  # far too sure
    sure = evaluate_classifier(classifier, trained.data)
    temperature = fit_temperature(classifier, trained.data, batch_size=4)
    assert temperature > 1.5
    assert classifier.temperature == temperature
    honest = evaluate_classifier(classifier, trained.data)
    assert honest.metrics["negative_log_likelihood"] < sure.metrics["negative_log_likelihood"]
    assert (honest.confusion_matrix, honest.temperature) == (sure.confusion_matrix, temperature)
    assert fit_temperature(classifier, trained.data) == pytest.approx(temperature, rel=1e-3)  # not of its result

    config = json.loads((tmp_path / "best" / "config.json").read_text())
    assert config == {**json.loads((trained.run / "best" / "config.json").read_text()), **_only(config)}
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_classifier(tmp_path)
    assert loaded.temperature == pytest.approx(temperature, rel=1e-3)
    after = evaluate_classifier(loaded, trained.data)
    assert after.metrics["accuracy"] == before.metrics["accuracy"]
    assert after.metrics["negative_log_likelihood"] != before.metrics["negative_log_likelihood"]
    shutil.copytree(trained.run / "state", tmp_path / "state")
    assert load_classifier(tmp_path / "state" / "latest").temperature == 1.0


def _only(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("temperature", "integrity")}


def test_a_classifier_without_a_folder_keeps_the_temperature_itself(trained: Trained) -> None:
    from_file = load_classifier(trained.path("model.onnx"))
    from_folder = replace(load_classifier(trained.run), folder=None)
    assert fit_temperature(from_file, trained.data) == pytest.approx(
        fit_temperature(from_folder, trained.data), rel=1e-3
    )
    assert from_file.temperature != 1.0
    of_val = fit_temperature(from_folder, trained.data / "val", eval_split=None)
    assert of_val == pytest.approx(fit_temperature(from_folder, trained.data))
    assert of_val != pytest.approx(fit_temperature(from_folder, trained.data, eval_split=None), rel=0.01)
    assert "temperature" not in json.loads((trained.run / "best" / "config.json").read_text())


def test_a_folder_that_cannot_be_written_leaves_the_classifier_as_it_is(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run / "best", tmp_path / "best")
    classifier = load_classifier(tmp_path)
    (tmp_path / "best" / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        fit_temperature(classifier, trained.data)
    assert classifier.temperature == brightness().temperature == 1.0


@pytest.mark.parametrize("softmax", [False, True])
def test_an_exported_file_keeps_the_temperature(trained: Trained, tmp_path: Path, softmax: bool) -> None:
    shutil.copytree(trained.run / "best", tmp_path / "best")
    folder = load_classifier(tmp_path)
    temperature = fit_temperature(folder, trained.data)
    assert temperature != 1.0
    file = load_classifier(export(tmp_path, tmp_path / "model.pt2", softmax=softmax).path)
    assert file.temperature == (1.0 if softmax else temperature)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(file.probabilities(images), folder.probabilities(images), atol=1e-5, rtol=1e-4)

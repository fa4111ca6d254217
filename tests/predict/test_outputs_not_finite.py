"""A model whose outputs are NaN or infinite is refused by the name of its weights, by all that uses it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import contents, refused
from torch import Tensor
from torch.utils.data import TensorDataset
from trained_runs import Trained, brightness, draw_image, trained_run

from timm_accel import create_classifier, load_classifier
from timm_accel.export import export, export_torchscript
from timm_accel.features import extract_embeddings
from timm_accel.model_soup import average_weights
from timm_accel.models import open_classifier, save_classifier
from timm_accel.predict import evaluate_classifier, fit_temperature

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def trained() -> Trained:
    return trained_run()


def broken_weights(trained: Trained, folder: Path, value: float = NAN, name: str = "fc.weight") -> Path:
    """The best weights with one value that is not finite."""
    model, config = open_classifier(trained.run / "best")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    save_classifier(model, folder, config["label_names"])
    return folder


@pytest.mark.parametrize(
    ("value", "name"), [(NAN, "fc.weight"), (INF, "fc.bias"), (-INF, "fc.bias"), (NAN, "bn1.bias")]
)
def test_predictions_and_metrics_name_the_weights(value: float, name: str, trained: Trained, tmp_path: Path) -> None:
    folder = broken_weights(trained, tmp_path / "weights", value, name)
    words = f"Expected the outputs of {folder / 'model.safetensors'} to be finite", "use other weights"
    with refused(ValueError, words[0], "NaN or infinity for 1 of 1 images", words[1]):
        load_classifier(folder).predict(trained.files[:1])
    with refused(ValueError, *words):
        evaluate_classifier(folder, trained.data)
    before = contents(folder)
    with refused(ValueError, *words):
        fit_temperature(load_classifier(folder), trained.data)
    assert contents(folder) == before


def test_predictions_name_the_first_image_of_the_batch() -> None:
    classifier = brightness()
    classifier.run = lambda images: torch.where(images.amax(dim=(1, 2, 3)) > 250, NAN, 0.0)[:, None].expand(-1, 3)
    dark = torch.zeros(3, 9, 9, dtype=torch.uint8)
    with pytest.raises(ValueError, match="NaN or infinity for 1 of 2 images") as caught:
        classifier.predict([dark, dark, dark, dark + 255], batch_size=2, progress=False)
    assert caught.value.__notes__ == ["The batch begins with image 2."]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("gives_probabilities", [False, True])
@pytest.mark.parametrize("outputs", [[NAN, NAN, NAN], [0.0, INF, 0.0], [0.0, 1.0, -INF]])
def test_every_kind_of_classifier_refuses_them(
    outputs: list[float], gives_probabilities: bool, multi_label: bool
) -> None:
    classifier = brightness(multi_label=multi_label, gives_probabilities=gives_probabilities, source="'a.onnx'")
    classifier.run = lambda images: torch.tensor([outputs]).expand(len(images), -1)
    for tta in ((), ("hflip",)):
        with refused(ValueError, "Expected the outputs of 'a.onnx' to be finite"):
            classifier.predict(draw_image(0, 0), tta=tta, progress=False)


def test_an_exported_file_and_a_state_are_named(trained: Trained, tmp_path: Path) -> None:
    for kind in ("model.pt", "state/latest"):
        path = trained.path(kind) if kind == "model.pt" else trained.run / kind
        assert load_classifier(path).source == str(path)
    assert load_classifier(trained.run).source.endswith("model.safetensors")


def test_a_model_in_memory_is_named_by_its_class(trained: Trained) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    with torch.no_grad():
        model.fc.bias[0] = INF
    with refused(ValueError, "Expected the outputs of the model in memory, a ResNet", "images of a batch"):
        evaluate_classifier(model, trained.data)


def test_embeddings_are_refused_and_not_written(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    images = torch.zeros(3, 3, 32, 32)
    images[1, 0, 0, 0] = INF
    with refused(ValueError, "Expected the outputs of the model, a ResNet", "for 1 of 3 images"):
        extract_embeddings(model, TensorDataset(images, torch.zeros(3)), tmp_path / "made.npz")
    assert contents(tmp_path) == {}


def test_an_export_is_refused_before_it_is_written(trained: Trained, tmp_path: Path) -> None:
    model, _ = open_classifier(broken_weights(trained, tmp_path / "weights"))
    (tmp_path / "out.pt").write_text("old")
    with refused(ValueError, "Expected the outputs of the model, test_resnet", "finite"):
        export_torchscript(model, tmp_path / "out.pt")
    with refused(ValueError, "Expected the outputs of the model, test_resnet", "finite"):
        export(tmp_path / "weights", tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_text() == "old"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_soup_names_the_weights(value: float, trained: Trained, tmp_path: Path) -> None:
    broken = broken_weights(trained, tmp_path / "weights", value)
    with refused(ValueError, "Expected weights to be finite", "fc.weight", str(broken), "Leave it out"):
        average_weights([trained.run / "best", broken], out=tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_a_soup_needs_finite_scores(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run / "best", tmp_path / "other")
    with refused(ValueError, "Expected evaluate to return a finite score", "nan", "best"):
        average_weights(
            [trained.run / "best", tmp_path / "other"], out=tmp_path / "soup", method="greedy", evaluate=lambda _: NAN
        )


def constant(value: float) -> Any:
    def run(images: Tensor) -> Tensor:
        return torch.full((len(images), 3), value)

    return run


def test_large_finite_outputs_are_predicted() -> None:
    classifier = brightness()
    classifier.run = constant(1e30)
    assert classifier.predict(draw_image(0, 0), progress=False)[0].scores == pytest.approx((1 / 3,) * 3)

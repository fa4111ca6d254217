"""A trained model says of files what its trainer's evaluation said, whatever form it is stored in."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import refused
from torch import nn
from trained_runs import CLASSES, Trained, brightness, draw_image, trained_run

from timm_accel import create_classifier, load_classifier
from timm_accel.export import export
from timm_accel.models import save_classifier
from timm_accel.predict import Classifier, Prediction, exit_code, write_predictions
from timm_accel.predict.images import ImageInputs, find_images

KINDS = ["run", "best", "model.onnx", "model.pt", "model.pt2"]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The run that all tests of predictions share."""
    return trained_run()


def images_of(classifier: Classifier, paths: list[str]) -> torch.Tensor:
    pictures = ImageInputs(find_images(paths), classifier.transform, classifier.prepare)
    images, errors = ImageInputs.collate_fn([pictures[number] for number in range(len(pictures))])
    assert not any(errors)
    assert images is not None
    return images


@pytest.mark.parametrize("kind", KINDS)
def test_files_get_the_labels_and_logits_of_the_trainers_evaluation(kind: str, trained: Trained) -> None:
    classifier = load_classifier(trained.path(kind))
    assert classifier.class_names == list(CLASSES)
    assert classifier.is_named
    assert classifier.input_size == (3, 32, 32)
    predictions = classifier.predict(trained.files, top_k=3, batch_size=4, progress=False)
    assert [each.path for each in predictions] == trained.files
    expected = trained.logits.double().softmax(dim=1)
    assert len(expected.argmax(dim=1).unique()) > 1
    assert [each.labels[0] for each in predictions] == [CLASSES[label] for label in expected.argmax(dim=1)]
    found = torch.tensor([[dict(zip(p.labels, p.scores, strict=True))[name] for name in CLASSES] for p in predictions])
    assert torch.allclose(found.double(), expected, atol=1e-5)
    logits = classifier.logits(images_of(classifier, trained.files))
    shift = (logits - trained.logits).mean(dim=1, keepdim=True)  # a includes a softmax leaves it open
    assert torch.allclose(logits - (shift if kind == "model.onnx" else 0), trained.logits.double(), atol=1e-4)


def test_a_state_gives_the_weights_of_its_moment(trained: Trained) -> None:
    newest = max((trained.run / "state").glob("*_epoch_*"))
    for path in (trained.run / "state" / "latest", newest):
        classifier = load_classifier(path)
        logits = classifier.logits(images_of(classifier, trained.files))
        assert torch.allclose(logits, trained.last_logits.double(), atol=1e-4)


def test_the_package_and_a_prediction_need_no_trainer(trained: Trained) -> None:
    code = (
        "import sys; from timm_accel import load_classifier, evaluate_classifier; "
        f"print(len(load_classifier({str(trained.run)!r}).predict({trained.files[0]!r}))); "
        "print([name for name in sys.modules if name.startswith(('timm_accel.training', 'pytorch_accelerated'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert result.stdout.split() == ["1", "[]"]


def test_a_folder_is_searched_in_natural_order(trained: Trained, tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/c/1.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(0, 0).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("none")
    predictions = load_classifier(trained.run).predict(tmp_path, progress=False)
    assert [each.path for each in predictions] == [
        str(tmp_path / name) for name in ("a/c/1.JPG", "b/2.png", "b/10.png")
    ]
    both = load_classifier(trained.run).predict([tmp_path / "b", str(tmp_path / "a/c/1.JPG")], progress=False)
    assert [each.path for each in both] == [str(tmp_path / name) for name in ("b/2.png", "b/10.png", "a/c/1.JPG")]


def test_an_image_in_memory_is_taken_as_its_file(tmp_path: Path) -> None:
    classifier, pixels = brightness(), np.asarray(draw_image(1, 4))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (expected,) = classifier.predict(tmp_path / "a.png", progress=False)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for images in (Image.fromarray(pixels), pixels, tensor, [pixels], pixels[None], tensor[None]):
        (found,) = classifier.predict(images, progress=False)
        assert (found.path, found.labels, found.scores) == (None, expected.labels, expected.scores)
    assert len(classifier.predict(np.stack([pixels] * 3), progress=False)) == 3
    for one_channel in (pixels[..., 0], pixels[..., :1], tensor[:1]):
        (grey,) = classifier.predict(one_channel, progress=False)
        assert grey.scores == pytest.approx([1 / 3] * 3)


def test_scores_are_the_softmax_of_the_logits_over_the_temperature() -> None:
    classifier = brightness()
    image = np.full((8, 8, 3), (255, 51, 102), np.uint8)
    for temperature in (1.0, 0.25):
        classifier.temperature = temperature
        parts = np.exp(np.array([1.0, 0.4, 0.2]) / temperature)
        (found,) = classifier.predict(image, top_k=2, progress=False)
        assert found.labels == ("red", "blue")
        assert found.scores == pytest.approx((parts / parts.sum())[:2].tolist(), abs=1e-6)
    assert len(classifier.predict(image, top_k=9)[0].labels) == 3


def test_a_multi_label_classifier_names_the_classes_above_the_threshold() -> None:
    image = np.full((8, 8, 3), (255, 0, 51), np.uint8)
    sigmoid = (1 / (1 + np.exp(-np.array([1.0, 0.2, 0.0])))).tolist()
    for threshold, names in ((0.5, ("red", "blue", "green")), (0.52, ("red", "blue")), (0.9, ())):
        (found,) = brightness(multi_label=True).predict(image, threshold=threshold, progress=False)
        assert found.labels == names
        assert found.scores == pytest.approx(sigmoid[: len(names)], abs=1e-6)
    assert brightness().predict(image, threshold=0.9)[0].labels == ("red", "blue", "green")


def test_what_cannot_be_read_is_named_and_the_rest_continues(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"none")
    draw_image(0, 0).save(tmp_path / "good.png")
    names = ["bad.png", "good.png", "missing.png", "good.png", "bad.png"]
    for batch_size, num_workers in ((1, 0), (2, 1), (5, 0)):
        found = brightness().predict(
            [tmp_path / name for name in names], batch_size=batch_size, num_workers=num_workers, progress=False
        )
        assert [Path(each.path or "").name for each in found] == names
        assert [each.error is None for each in found] == [name == "good.png" for name in names]
        assert found[1] == found[3]
        assert found[0].labels == found[0].scores == ()
    assert "no image of a kind that Pillow knows" in str(found[0].error)
    assert "No such file" in str(found[2].error)
    assert (exit_code(found), exit_code(found[1:2]), exit_code([])) == (1, 0, 0)


PREDICTIONS = [Prediction("é.png", ("a", "b"), (0.75, 0.25)), Prediction("b.png", error="broken, it is")]


def test_predictions_are_written_as_csv_json_and_parquet(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    for name in ("out.csv", "new/out.json", "out.parquet"):
        write_predictions(PREDICTIONS, tmp_path / name)
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "label_1", "score_1", "label_2", "score_2", "error"],
        ["é.png", "a", "0.75", "b", "0.25", ""],
        ["b.png", "", "", "", "", "broken, it is"],
    ]
    expected = [
        {"path": "é.png", "labels": ["a", "b"], "scores": [0.75, 0.25], "error": None},
        {"path": "b.png", "labels": [], "scores": [], "error": "broken, it is"},
    ]
    assert json.loads((tmp_path / "new/out.json").read_text(encoding="utf-8")) == expected
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == expected


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_predictions(PREDICTIONS, tmp_path / "out.json")
    before = (tmp_path / "out.json").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_predictions([Prediction("a", ("b",), (object(),))], tmp_path / "out.json")  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.json": before}


def test_parquet_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with refused(ModuleNotFoundError, "extra 'parquet'", 'pip install "timm_accel[parquet]"'):
        write_predictions([], tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


def fake_run(run: Path, **kept: dict[str, Any]) -> Path:
    """A run with ``best`` and ``best_ema`` that say when and why they were kept; each names its classes by itself."""
    for name, best in kept.items():
        model, _ = create_classifier("test_resnet", 2, image_size=32)
        greater = "loss" not in best.get("metric", "")
        save_classifier(model, run / name, [f"{name} a", f"{name} b"], best=best, greater_is_better=greater)
    return run


@pytest.mark.parametrize(
    ("metric", "best", "average", "chosen"),
    [
        ("accuracy", 0.8, 0.9, "best_ema"),
        ("accuracy", 0.9, 0.8, "best"),
        ("accuracy", 0.8, 0.8, "best"),
        ("eval_loss_epoch", 0.8, 0.9, "best"),
        ("eval_loss_epoch", 0.9, 0.8, "best_ema"),
        ("accuracy", None, 0.1, "best_ema"),
        ("accuracy", 0.1, None, "best"),
    ],
)
def test_the_better_of_model_and_ema_model_is_chosen(
    metric: str, best: float | None, average: float | None, chosen: str, tmp_path: Path
) -> None:
    values = {"best": (metric, best), "best_ema": (f"ema_model_{metric}", average)}
    kept = {name: {"metric": each, "value": value} for name, (each, value) in values.items() if value is not None}
    run = fake_run(tmp_path, **kept)
    assert load_classifier(run).class_names[0] == f"{chosen} a"
    for name in kept:
        assert load_classifier(run, weights=name).class_names[0] == f"{name} a"


def test_a_custom_head_names_and_multi_label_come_with_the_folder(tmp_path: Path) -> None:
    def head(in_features: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Linear(in_features, num_classes))

    model, _ = create_classifier("test_resnet", 2, image_size=32, in_chans=1, head=head)
    save_classifier(model, tmp_path / "own", multi_label=True)
    classifier = load_classifier(tmp_path / "own", head=head)
    assert (classifier.class_names, classifier.is_named) == (["0", "1"], False)
    assert classifier.multi_label
    assert not load_classifier(tmp_path / "own", head=head, multi_label=False).multi_label
    file = export(tmp_path / "own", tmp_path / "model.pt", head=head).path
    assert load_classifier(file).multi_label
    assert not load_classifier(file, multi_label=False).multi_label
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert len(classifier.predict(draw_image(0, 0), threshold=0)[0].labels) == 2  # in gray
    mean, std = (torch.tensor(classifier.data_config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = model.eval()((images / 255 - mean) / std)
    assert torch.allclose(classifier.logits(images), expected.double(), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        ("no/such", FileNotFoundError, ["'no/such'", "does not exist", "Correct the path"]),
        (3, TypeError, ["PIL images", "but got int"]),
        ([None], TypeError, ["but got NoneType"]),
        (np.zeros((4, 4, 3)), TypeError, ["uint8", "but got float64"]),
        (torch.zeros(3, 4, 4), TypeError, ["uint8", "but got torch.float32"]),
        (np.zeros((3, 4, 5), np.uint8), ValueError, ["(H, W, C)", "an array (3, 4, 5)", "Transpose"]),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), None, []),
        (torch.zeros(5, 4, 3, dtype=torch.uint8), ValueError, ["(C, H, W)", "a tensor (5, 4, 3)"]),
        (torch.zeros(4, 3, dtype=torch.uint8), ValueError, ["a tensor (4, 3)"]),
    ],
)
def test_what_is_no_image_is_refused(images: Any, kind: type[Exception] | None, words: list[str]) -> None:
    if kind is None:
        assert len(brightness().predict(images)) == 1
        return
    with refused(kind, "Expected images", *words):
        brightness().predict(images)


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    image = draw_image(0, 0)
    with refused(FileNotFoundError, "holds images", str(tmp_path), "holds no images"):
        brightness().predict(tmp_path)
    with refused(ValueError, "Expected top_k to be at least 1", "got 0"):
        brightness().predict(image, top_k=0)
    with refused(ValueError, "Expected batch_size", "got 1.5"):
        brightness().predict(image, batch_size=1.5)  # type: ignore[arg-type]
    with refused(ValueError, "Expected tta", "'hflop'", "Did you mean 'hflip'"):
        brightness().predict(image, tta=("hflop",))
    with refused(ValueError, "Expected path to end in .csv, .json, .parquet", "out.cvs", "Did you mean '.csv'"):
        write_predictions([], tmp_path / "out.cvs")


def test_paths_without_a_classifier_are_refused(trained: Trained, tmp_path: Path) -> None:
    with refused(FileNotFoundError, "Expected path", "no/such", "does not exist"):
        load_classifier("no/such")
    with refused(FileNotFoundError, "holds best or best_ema", str(tmp_path), "SaveBestCallback"):
        load_classifier(tmp_path)
    with refused(FileNotFoundError, "holds best_ema", str(trained.run)):
        load_classifier(trained.run, weights="best_ema")
    with refused(ValueError, "Expected weights", "beside the folder of a run", "'best'"):
        load_classifier(trained.run / "best", weights="best")
    with refused(ValueError, "Expected weights", "'ema'"):
        load_classifier(trained.run, weights="ema")
    with refused(ValueError, "Expected device to be 'cpu'", "'cuda'"):
        load_classifier(trained.path("model.pt"), device="cuda")
    with refused(ValueError, "Expected device to be 'cpu'", "'gpu'"):
        load_classifier(trained.path("model.pt"), device="gpu")
    with refused(ValueError, "Expected device to be one that this machine has", "'gpu'"):
        load_classifier(trained.run, device="gpu")
    with refused(ValueError, "Expected multi_label", "includes a softmax", "softmax=False"):
        load_classifier(trained.path("model.onnx"), multi_label=True)
    with refused(ValueError, "Expected path to end in", "config.json"):
        load_classifier(trained.run / "best" / "config.json")


def test_a_state_that_nothing_describes_or_of_another_model_is_refused(trained: Trained, tmp_path: Path) -> None:
    state = next((trained.run / "state").glob("*_epoch_*"))
    shutil.copytree(state, tmp_path / "state" / state.name)
    with refused(FileNotFoundError, "Expected path to be a state of a run with best or best_ema", state.name):
        load_classifier(tmp_path / "state" / state.name)
    fake_run(tmp_path, best={})
    with refused(ValueError, "Expected path to be a state of the model in", "size mismatch"):
        load_classifier(tmp_path / "state" / state.name)


def test_names_that_are_not_as_many_as_the_outputs_are_refused(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    save_classifier(model, tmp_path, ["a", "b"])
    with refused(ValueError, "as many class names as the model's 3 outputs", "got 2"):
        load_classifier(tmp_path)

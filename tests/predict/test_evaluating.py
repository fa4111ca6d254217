"""Metrics are those of the trainer and of the reference libraries, and files are compared by them."""

import io
import json
import tarfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from refusal import refused
from timm.data.readers.reader import Reader
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Subset
from trained_runs import CLASSES, Trained, brightness, draw_image, trained_run

from timm_accel import create_classifier, evaluate_classifier, load_classifier
from timm_accel.data import ImageFolderDataset, Source
from timm_accel.models import open_classifier, save_classifier
from timm_accel.plots import plot_confusion
from timm_accel.predict import Evaluation, evaluation_of, score_images
from timm_accel.predict.augmentation import config_of_views, views_of
from timm_accel.predict.measures import (
    Outcomes,
    confusion_matrix,
    most_confused,
    multiclass_measures,
    multiclass_metrics,
    multilabel_measures,
    multilabel_metrics,
    outcome_rows,
)


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The run that all tests of predictions share."""
    return trained_run()


def color(red: int, green: int, blue: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), (red, green, blue), np.uint8))


class Colours(Dataset):
    """Plain images, in an order of classes that is not the classifier's."""

    classes = ("blue", "red", "green")
    pictures = ((color(255, 0, 0), 1), (color(0, 255, 0), 2), (color(0, 200, 255), 0), (color(0, 255, 90), 0))

    def __init__(self, classes: tuple[str, ...] | None = None) -> None:
        self.classes = self.classes if classes is None else classes
        self.targets = [label for _, label in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.pictures[index]


class Relisted(Dataset):
    """Images of a dataset with other names, and with labels by a map."""

    def __init__(self, dataset: Any, classes: tuple[str, ...], labels: dict[int, int]) -> None:
        self.images, self.classes, self.map = dataset, classes, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images[index]
        return image, self.map[label]


class Nameless(Reader):
    """A reader of a user without names of classes."""

    labels = (0, 1)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError

    def __len__(self) -> int:
        return 2

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(index)


@pytest.mark.parametrize("kind", ["run", "best", "model.onnx", "model.pt", "model.pt2", "model"])
def test_each_form_has_the_metrics_of_the_trainers_evaluation(kind: str, trained: Trained) -> None:
    source: Any = open_classifier(trained.run / "best")[0] if kind == "model" else trained.path(kind)
    if kind == "model":
        source.pretrained_cfg["label_names"] = list(CLASSES)
        source.train()
    found = evaluate_classifier(source, trained.data, batch_size=4)
    assert found.metrics["accuracy"] == pytest.approx(trained.metrics["accuracy"])
    assert found.metrics["f1_macro"] == pytest.approx(trained.metrics["f1_macro"])
    assert found.metrics["negative_log_likelihood"] == pytest.approx(trained.metrics["eval_loss_epoch"], rel=1e-4)
    assert (found.num_images, found.unreadable, found.tta, found.temperature) == (15, [], (), 1.0)
    assert kind != "model" or source.training  # it stays as it was


def test_classes_are_matched_by_name_and_counted() -> None:
    found = evaluate_classifier(brightness(), Colours())
    # the fourth is blue, and more green than blue
    assert found.confusion_matrix == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert found.class_names == ["red", "green", "blue"]
    assert [each.support for each in found.classes] == [1, 1, 2]
    assert [each.recall for each in found.classes] == [1, 1, 0.5]
    assert [each.precision for each in found.classes] == [1, 0.5, 1]
    assert [each.f1 for each in found.classes] == pytest.approx([1, 2 / 3, 2 / 3])
    assert found.metrics["accuracy"] == 0.75
    assert [asdict(pair) for pair in found.most_confused] == [{"label": "blue", "prediction": "green", "count": 1}]
    logits = np.array([[1, 0, 0], [0, 1, 0], [0, 200 / 255, 1], [0, 1, 90 / 255]])
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(chances[range(4), [0, 1, 2, 2]]).mean()
    assert found.metrics["negative_log_likelihood"] == pytest.approx(expected, abs=1e-6)


def test_metrics_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities = torch.randn(60, 7).double().softmax(dim=1)
    labels = torch.randint(0, 6, (60,))  # the last class has no image
    called, names = probabilities.argmax(dim=1), [f"class {number}" for number in range(7)]
    outcomes = outcomes_of(probabilities, labels)
    found = multiclass_metrics(outcomes, 7)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, called))
    assert found["accuracy_top5"] == pytest.approx(
        metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(7))
    )
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(labels, called, average="macro", zero_division=0))
    assert found["negative_log_likelihood"] == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(7)))
    matrix = confusion_matrix(outcomes, 7)
    assert matrix is not None
    assert matrix == metrics.confusion_matrix(labels, called, labels=range(7)).tolist()
    columns = metrics.precision_recall_fscore_support(labels, called, labels=range(7), zero_division=0)
    for each, *expected in zip(multiclass_measures(outcomes, names), *columns, strict=True):
        assert [each.precision, each.recall, each.f1, each.support] == pytest.approx(expected)
    pairs = most_confused(outcomes, names, max_items=3)
    assert len(pairs) == 3
    counts = sorted((matrix[row][column] for row in range(7) for column in range(7) if row != column), reverse=True)
    assert [pair.count for pair in pairs] == counts[:3]
    first = pairs[0]
    assert matrix[names.index(first.label)][names.index(first.prediction)] == first.count


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.size = max([self.size, *(each.numel() for each in tree_leaves(made) if torch.is_tensor(each))])
        return made


@pytest.mark.parametrize(("count", "has_matrix"), [(1000, True), (1001, False), (21841, False)])
def test_memory_is_linear_in_the_classes_and_the_matrix_has_a_limit(count: int, has_matrix: bool) -> None:
    names = [f"c{number}" for number in range(count)]
    last = count - 1
    calls = {0: 0, 1: last, 2: last, 3: 3, 4: 4, 5: 5}  # the classes 1 and 2 are taken for the last one
    labels = [0, 1, 2, 2, 3, 4, 5]
    run = _called([calls[label] for label in labels], count)
    classifier = replace(brightness(), class_names=names, is_named=False, run=run)
    data = Colours(tuple(names))
    data.pictures, data.targets = tuple((color(0, 0, 0), label) for label in labels), labels
    with Largest() as largest:
        found = evaluate_classifier(classifier, data)
    assert (found.confusion_matrix is not None) is has_matrix
    assert largest.size <= (count**2 if has_matrix else 2 * len(labels) * count)
    assert [(each.label, each.prediction, each.count) for each in found.most_confused] == [
        ("c2", f"c{last}", 2), ("c1", f"c{last}", 1)]  # fmt: skip
    assert found.metrics["accuracy"] == pytest.approx(4 / 7)
    assert found.metrics["f1_macro"] == pytest.approx(4 / 7)  # of 7 classes that occur, 4 are right
    assert [each.support for each in found.classes[:6]] == [1, 1, 2, 1, 1, 1]
    assert found.classes[last].precision == 0
    if not has_matrix:
        with refused(ValueError, "Expected evaluation to have a confusion matrix", f"too many classes, {count}"):
            plot_confusion(found)


@pytest.mark.parametrize("tta", [(), ("hflip",)])
def test_an_evaluation_keeps_four_numbers_of_each_image_whatever_the_number_of_classes(tta: tuple[str, ...]) -> None:
    images, count, batch_size = 60, 1500, 4
    data = Colours(tuple(f"c{number}" for number in range(count)))
    data.pictures, data.targets = tuple((color(0, 0, 0), label) for label in range(images)), list(range(images))
    weights = torch.randn(count, generator=torch.Generator().manual_seed(0))
    classifier = replace(brightness(), class_names=list(data.classes), run=lambda each: weights.repeat(len(each), 1))
    with Largest() as largest:
        found = evaluate_classifier(classifier, data, batch_size=batch_size, tta=tta)
    assert largest.size <= batch_size * count * (1 + len(tta))
    assert found == evaluation_of(score_images(classifier, data, batch_size=batch_size, tta=tta))
    assert found.metrics["negative_log_likelihood"] == pytest.approx(
        -weights.double().log_softmax(dim=0)[:images].mean().item()
    )


def outcomes_of(probabilities: torch.Tensor, labels: torch.Tensor) -> Outcomes:
    return Outcomes.of_rows(outcome_rows(probabilities, labels), labels)


def _called(classes: list[int], count: int) -> Any:
    """A model that is sure of these classes, one image after the other."""
    return lambda images: 50 * one_hot(torch.tensor(classes[: len(images)]), count).float()


def test_multi_label_metrics_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, targets = torch.rand(40, 3).double(), torch.randint(0, 2, (40, 3)).float()
    found, called = multilabel_metrics(probabilities, targets), probabilities > 0.5
    assert found["map"] == pytest.approx(metrics.average_precision_score(targets, probabilities, average="macro"))
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(targets, called, average="macro"))
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(targets, called))
    chances = torch.where(targets > 0, probabilities, 1 - probabilities)
    assert found["negative_log_likelihood"] == pytest.approx(-chances.log().mean().item())
    columns = metrics.precision_recall_fscore_support(targets, called)
    for each, *expected in zip(multilabel_measures(probabilities, targets, ["a", "b", "c"]), *columns, strict=True):
        assert [each.precision, each.recall, each.f1, each.support] == pytest.approx(expected)


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    # two of three right at 0.9, both right at 0.6: (3 · |0.9 - 2/3| + 2 · |0.6 - 1|) / 5
    probabilities = torch.tensor([[0.9, 0.1]] * 3 + [[0.4, 0.6]] * 2).double()
    found = multiclass_metrics(outcomes_of(probabilities, torch.tensor([0, 0, 1, 1, 1])), 2)
    assert found["calibration_error"] == pytest.approx((3 * (0.9 - 2 / 3) + 2 * 0.4) / 5)
    # 0.65 and 0.68 are in one bin of 10, and in two of 15
    probabilities = torch.tensor([[0.65, 0.35], [0.68, 0.32]]).double()
    found = multiclass_metrics(outcomes_of(probabilities, torch.tensor([0, 1])), 2)
    assert found["calibration_error"] == pytest.approx((0.35 + 0.68) / 2)


def test_top_5_is_there_for_more_than_five_classes() -> None:
    for count in (5, 6):
        probabilities = torch.arange(count, 0, -1).double().expand(2, count) / count  # the last class is the least
        found = multiclass_metrics(outcomes_of(probabilities, torch.tensor([0, count - 1])), count)
        assert found.get("accuracy_top5") == {5: None, 6: 0.5}[count]


def test_a_sure_mistake_has_a_finite_likelihood() -> None:
    found = multiclass_metrics(outcomes_of(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([1])), 2)
    assert found["negative_log_likelihood"] == pytest.approx(-np.log(torch.finfo(torch.float64).tiny))


def manifest(folder: Path) -> Path:
    for number, each in enumerate([color(255, 0, 0), color(255, 250, 0), color(0, 0, 250)]):
        each.save(folder / f"{number}.png")
    rows = ["path,label", "0.png,red", "1.png,green;red", "2.png,blue"]
    (folder / "set.csv").write_text("\n".join(rows))
    return folder / "set.csv"


def test_multi_label_data_is_evaluated_by_a_sigmoid(tmp_path: Path) -> None:
    classifier = replace(brightness(multi_label=True), run=lambda x: x.float().mean(dim=(2, 3)) - 100)
    found = evaluate_classifier(classifier, manifest(tmp_path), eval_split=None)
    assert (found.metrics["exact_match"], found.metrics["map"], found.num_images) == (1.0, 1.0, 3)
    assert [each.support for each in found.classes] == [2, 1, 1]
    assert (found.confusion_matrix, found.most_confused) == (None, [])
    with refused(ValueError, "Expected data to be single-label", "multi-label", "multi_label=True"):
        evaluate_classifier(brightness(), tmp_path / "set.csv", eval_split=None)
    with refused(ValueError, "Expected data to be multi-label", "single-label", "multi_label=False"):
        evaluate_classifier(classifier, Colours())
    with refused(ValueError, "Expected evaluation to have a confusion matrix", "evaluation.classes"):
        plot_confusion(found)


def test_a_model_in_memory_gives_as_many_labels_as_the_data(tmp_path: Path) -> None:
    names = ["red", "green", "blue"]
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    save_classifier(model, tmp_path / "best", names, multi_label=True)
    model.pretrained_cfg["label_names"] = names
    found = evaluate_classifier(model, manifest(tmp_path), eval_split=None)
    assert found == evaluate_classifier(tmp_path / "best", tmp_path / "set.csv", eval_split=None)
    assert "exact_match" in found.metrics
    assert "accuracy" in evaluate_classifier(model, Colours()).metrics


def test_timms_own_validation_of_the_folder_finds_the_same(trained: Trained, tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for number in range(8):
            draw_image(label, 50 + number).save(tmp_path / name / f"{number}.png")
    model = timm.create_model(f"local-dir:{trained.run}/best", pretrained=True).eval()
    config = timm.data.resolve_data_config({}, model=model, use_test_size=True)
    dataset = timm.data.create_dataset("", root=str(tmp_path))
    loader = timm.data.create_loader(dataset, **config, batch_size=5, num_workers=0, use_prefetcher=False)
    with torch.no_grad():
        logits, labels = (torch.cat(each) for each in zip(*((model(x), y) for x, y in loader), strict=True))
    called = [CLASSES[label] for label in logits.argmax(dim=1)]
    assert len(set(called)) > 1
    files = [dataset.filename(number, absolute=True) for number in range(24)]
    assert [each.labels[0] for each in load_classifier(trained.run).predict(files)] == called
    (top1,) = timm.utils.accuracy(logits, labels)
    found = evaluate_classifier(trained.run, tmp_path, eval_split=None)
    assert found.metrics["accuracy"] == pytest.approx(top1.item() / 100)


def test_data_are_a_split_the_whole_or_a_dataset_with_its_transform(trained: Trained) -> None:
    classifier = load_classifier(trained.run)
    expected = evaluate_classifier(classifier, trained.data)
    val = trained.data / "val"
    dataset = ImageFolderDataset(val, transform=lambda picture: 0)
    for data, split in ((val, None), (dataset, "train"), (Source(trained.data), "val"), ({"test": val}, "test")):
        assert evaluate_classifier(classifier, data, eval_split=split) == expected
    assert evaluate_classifier(classifier, trained.data, eval_split="train").num_images == 24
    assert evaluate_classifier(classifier, val).num_images < 15  # a set without splits is divided


def test_a_model_of_one_channel_gets_gray_images() -> None:
    config, shapes = {**brightness().data_config, "input_size": (1, 8, 8)}, []

    def run(images: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(images.shape))
        return torch.zeros(len(images), 3)

    evaluate_classifier(replace(brightness(), run=run, data_config=config), Colours())
    assert shapes == [(4, 1, 8, 8)]


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    for name in ("red", "green", "blue"):
        (tmp_path / name).mkdir()
        color(*(255 * (name == each) for each in ("red", "green", "blue"))).save(tmp_path / name / "1.png")
    bad = tmp_path / "green" / "0.png"
    bad.write_bytes(b"none")
    found = evaluate_classifier(brightness(), tmp_path, eval_split=None, batch_size=1, num_workers=1)
    assert (found.unreadable, found.num_images, found.metrics["accuracy"]) == ([str(bad)], 3, 1.0)
    assert str(found).startswith("3 of 4 images of 3 classes\n")
    assert f"1 cannot be read: {bad}" in str(found)
    for path in tmp_path.rglob("1.png"):
        path.write_bytes(b"none")
    with refused(ValueError, "Expected data to hold an image that can be read", "no image of a kind", "Repair"):
        evaluate_classifier(brightness(), tmp_path, eval_split=None)


def test_too_many_images_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    for name in ("blue", "green", "red"):
        (tmp_path / name).mkdir()
        color(*(255 * (name == each) for each in ("red", "green", "blue"))).save(tmp_path / name / "1.png")
    for number in range(11):
        (tmp_path / "green" / f"bad{number:02d}.png").write_bytes(b"none")
    with refused(ValueError, "at most 10 unreadable images", "got 11", "bad00.png'", "Repair or remove them"):
        evaluate_classifier(brightness(), tmp_path, eval_split=None)
    (tmp_path / "green" / "bad00.png").unlink()
    found = evaluate_classifier(brightness(), tmp_path, eval_split=None)
    assert (found.num_images, len(found.unreadable)) == (3, 10)


def test_a_stream_is_evaluated_without_what_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")

    def write(*pictures: bytes) -> Source:
        with tarfile.open(tmp_path / "val-0000.tar", "w") as tar:
            for number, content in enumerate(pictures):
                for suffix, each in (("png", content), ("cls", str(number).encode())):
                    member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    member.size = len(each)
                    tar.addfile(member, io.BytesIO(each))
        return Source(f"wds/{tmp_path}", class_map={"red": 0, "blue": 1, "green": 2})

    files = []
    for name, values in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("green", (0, 255, 0))):
        color(*values).save(tmp_path / f"{name}.png")
        files.append((tmp_path / f"{name}.png").read_bytes())
    for num_workers in (0, 1):
        found = evaluate_classifier(brightness(), write(*files), batch_size=2, num_workers=num_workers)
        assert (found.num_images, found.metrics["accuracy"], found.unreadable) == (3, 1.0, [])
    for num_workers in (0, 1):
        source = write(files[0], b"none", files[2])
        found = evaluate_classifier(brightness(), source, batch_size=2, num_workers=num_workers)
        assert (found.num_images, found.metrics["accuracy"]) == (2, 1.0)
        assert [Path(path).name for path in found.unreadable] == ["001"]
        assert str(found).startswith("2 of 3 images of 3 classes\n1 cannot be read: ")


def test_flips_and_crops_multiply_the_views() -> None:
    images = torch.arange(36).view(1, 1, 6, 6)
    assert [view.tolist() for view in views_of(images, (), (6, 6))] == [images.tolist()]
    flipped = views_of(images, ("vflip", "hflip"), (6, 6))
    assert [view[0, 0, 0, 0].item() for view in flipped] == [0, 5, 30, 35]
    crops = views_of(images, ("five_crop",), (4, 4))
    assert [view[0, 0, 0, 0].item() for view in crops] == [7, 0, 2, 12, 14]
    both = views_of(images, ("five_crop", "hflip"), (4, 4))
    assert {view.shape for view in both} == {(1, 1, 4, 4)}
    assert len(both) == 10


def test_probabilities_are_the_mean_over_the_views() -> None:
    corner = replace(brightness(), run=lambda images: images[:, :, 0, 0].float() / 255)
    left, right = [1.0, 0.0, 0.0], [0.0, 0.6, 0.0]
    pixels = np.full((8, 8, 3), np.array(left) * 255, np.uint8)
    pixels[:, 4:] = np.array(right) * 255
    corner.data_config["crop_pct"] = 1.0
    expected = (torch.tensor(left).softmax(0) + torch.tensor(right).softmax(0)) / 2
    (found,) = corner.predict(pixels, tta="hflip")
    assert dict(zip(found.labels, found.scores, strict=True)) == pytest.approx(
        dict(zip(corner.class_names, expected.tolist(), strict=True)), abs=1e-6
    )
    symmetric = np.concatenate([pixels[:, :4], pixels[:, 3::-1]], axis=1)
    assert corner.predict(symmetric, tta=("hflip",)) == corner.predict(symmetric)


def test_crops_of_a_prediction_reach_into_the_corners() -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)  # of which the plain crop leaves a border of 1 pixel
    pixels[0, 0], pixels[9, 9] = (255, 0, 0), (0, 0, 255)
    (found,) = brightness().predict(pixels, tta="five_crop")
    spot = torch.tensor([1 / 64, 0, 0]).softmax(0)
    side = ((spot[0] + spot[1] + 3 / 3) / 5).item()  # two corners are not black
    expected = {"red": side, "green": 1 - 2 * side, "blue": side}
    assert dict(zip(found.labels, found.scores, strict=True)) == pytest.approx(expected, abs=1e-6)
    assert brightness().predict(pixels)[0].scores == pytest.approx([1 / 3] * 3)
    data = Colours()
    data.pictures, data.targets = ((Image.fromarray(pixels), 1),), [1]
    found = evaluate_classifier(brightness(), data, tta="five_crop")
    assert found.metrics["negative_log_likelihood"] == pytest.approx(-np.log(side), abs=1e-6)


def test_crops_are_of_the_resized_image(trained: Trained) -> None:
    classifier = load_classifier(trained.run)
    side = int(32 / classifier.data_config["crop_pct"])
    square = Image.open(trained.files[-1]).crop((0, 0, 40, 40))
    whole = classifier.transform_of_views(("five_crop",))(square)
    assert whole.shape == (3, side, side)
    plain = classifier.transform(square)
    assert torch.equal(views_of(whole[None], ("five_crop",), (32, 32))[0][0], plain)
    found = evaluate_classifier(classifier, trained.data, tta=("five_crop", "hflip"))
    assert (found.num_images, found.tta) == (15, ("five_crop", "hflip"))
    plainly = evaluate_classifier(classifier, trained.data).metrics
    assert found.metrics["negative_log_likelihood"] != plainly["negative_log_likelihood"]
    for change in ({"crop_pct": 1.0}, {"crop_pct": 1.15}, {"crop_mode": "border"}):
        with refused(ValueError, "Expected tta without 'five_crop'", "Use 'hflip'"):
            config_of_views({**classifier.data_config, **change}, ("five_crop",))


def test_a_list_of_classes_that_differs_is_refused_by_name() -> None:
    with refused(ValueError, "the model's 3 classes, but got 3", "lacks ['green']", "has ['lime'] besides"):
        evaluate_classifier(brightness(), Colours(("blue", "red", "lime")))
    with refused(ValueError, "but got 4", "lacks none", "has ['lime'] besides"):
        evaluate_classifier(brightness(), Colours(("blue", "red", "green", "lime")))
    with refused(ValueError, "but got 12", "'c7'] and 2 more besides"):
        evaluate_classifier(brightness(), Colours(tuple(f"c{number}" for number in range(12))))


def test_data_that_lack_classes_are_evaluated_on_those_they_have() -> None:
    data = Subset(Colours(), [0, 2, 3])  # red, and two blue, one of which the classifier calls green
    data = Relisted(data, ("blue", "red"), {0: 0, 1: 1})
    found = evaluate_classifier(brightness(), data)
    assert found.missing_classes == ["green"]
    assert found.confusion_matrix == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert found.metrics["f1_macro"] == pytest.approx((1 + 2 / 3) / 2)  # of red and blue
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert str(found).splitlines()[:2] == ["3 images of 3 classes", "1 of these classes are not in the data: green"]
    assert asdict(found)["missing_classes"] == ["green"]
    assert evaluate_classifier(brightness(), Colours()).missing_classes == []
    with refused(ValueError, "the model's 3 classes, but got 2", "lacks", "has ['lime'] besides"):
        evaluate_classifier(brightness(), Relisted(data, ("lime", "red"), {0: 0, 1: 1}))


def test_multi_label_data_that_lack_classes_are_evaluated_on_those_they_have(tmp_path: Path) -> None:
    classifier = replace(brightness(multi_label=True), run=lambda x: x.float().mean(dim=(2, 3)) - 100)
    manifest(tmp_path)
    (tmp_path / "set.csv").write_text("path,label\n0.png,red\n1.png,red;blue\n2.png,blue\n")
    found = evaluate_classifier(classifier, tmp_path / "set.csv", eval_split=None)
    assert found.missing_classes == ["green"]
    probabilities = torch.tensor([[255.0, 0], [255, 0], [0, 255]]).sub(100).double().sigmoid()
    targets = torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    assert found.metrics == pytest.approx(multilabel_metrics(probabilities, targets))


def test_an_unnamed_model_takes_the_first_numbers_of_unnamed_data() -> None:
    classifier = replace(brightness(), class_names=["0", "1", "2"], is_named=False)
    found = evaluate_classifier(classifier, Relisted(Subset(Colours(), [0, 1]), ("0", "1"), {1: 0, 2: 1}))
    assert (found.metrics["accuracy"], found.missing_classes) == (1, ["2"])
    with refused(ValueError, "the model's 3 classes, but got 2"):
        evaluate_classifier(classifier, Relisted(Subset(Colours(), [0, 1]), ("1", "2"), {1: 0, 2: 1}))


def test_a_manifest_with_one_label_an_image_is_multi_label_if_the_model_is(tmp_path: Path) -> None:
    classifier = replace(brightness(multi_label=True), run=lambda x: x.float().mean(dim=(2, 3)) - 100)
    path = manifest(tmp_path)
    path.write_text("path,label,split\n0.png,red,test\n2.png,blue,test\n")
    for options in ({"eval_split": None}, {"eval_split": "test"}):
        found = evaluate_classifier(classifier, path, **options)
        assert (found.metrics["exact_match"], found.num_images) == (1.0, 2)
        assert [each.support for each in found.classes] == [1, 0, 1]
    color(0, 0, 220).save(tmp_path / "3.png")
    path.write_text("path,label\n0.png,red\n2.png,blue\n3.png,blue\n1.png,red\n")
    assert evaluate_classifier(classifier, Source(path, val_fraction=0.5)).confusion_matrix is None


def test_a_reader_without_names_of_classes_is_refused() -> None:
    with refused(ValueError, "Expected data to name its classes", "class_to_idx"):
        evaluate_classifier(brightness(), Nameless())


def test_classes_that_nobody_named_are_taken_in_the_order_of_the_data() -> None:
    classifier = replace(brightness(), class_names=["0", "1", "2"], is_named=False)
    found = evaluate_classifier(classifier, Colours())
    # blue, red, green are 0, 1, 2 here; the classifier calls red 0, green 1, blue 2
    assert found.confusion_matrix == [[0, 1, 1], [1, 0, 0], [0, 1, 0]]
    with refused(ValueError, "the model's 2 classes, but got 3"):
        evaluate_classifier(replace(classifier, class_names=["0", "1"]), Colours())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with refused(TypeError, "Expected path_or_model", "but got int"):
        evaluate_classifier(3, Colours())  # type: ignore[arg-type]
    with refused(ValueError, "Expected device to be None", "on 'cpu' already", "'meta'"):
        evaluate_classifier(brightness(), Colours(), device="meta")
    with refused(ValueError, "Expected device to be one that this machine has", "'gpu'", "Leave it out"):
        evaluate_classifier(brightness(), Colours(), device="gpu")
    with refused(ValueError, "Expected tta", "'flip'"):
        evaluate_classifier(brightness(), Colours(), tta=["flip"])
    with refused(ValueError, "data config in pretrained_cfg", "Linear"):
        evaluate_classifier(torch.nn.Linear(2, 2), Colours())
    with refused(FileNotFoundError, "no/such"):
        evaluate_classifier("no/such", Colours())


def test_a_device_may_be_named_with_and_without_its_number() -> None:
    for device in ("cpu", "cpu:0", torch.device("cpu", 0)):
        assert evaluate_classifier(brightness(), Colours(), device=device).num_images == 4


def test_an_evaluation_prints_a_short_table_and_goes_to_json(tmp_path: Path) -> None:
    found = evaluate_classifier(brightness(), Colours())
    found.to_json(tmp_path / "new" / "evaluation.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["evaluation.json"]
    read = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert read == json.loads(json.dumps(asdict(found)))
    lines = str(found).splitlines()
    assert lines[0] == "4 images of 3 classes"
    assert "accuracy                0.7500" in lines
    assert "blue       1.000   0.500   0.667        2" in lines
    assert lines[-1] == "most confused: blue as green (1)"
    assert "cannot be read" not in str(found)


def test_the_figure_shows_counts_and_names() -> None:
    pytest.importorskip("matplotlib")
    figure = plot_confusion(evaluate_classifier(brightness(), Colours()))
    axes, bar = figure.axes
    counts = {text.get_position(): text.get_text() for text in axes.texts}  # by (column, row)
    ones = {(0, 0), (1, 1), (1, 2), (2, 2)}
    assert counts == {(x, y): "1" if (x, y) in ones else "0" for x in range(3) for y in range(3)}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["red", "green", "blue"]
    assert axes.images[0].get_array().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]]
    assert bar.get_ylabel() == "share of the true class"
    many = Evaluation({}, _named(30), [[0] * 30] * 30, [], 0, [], 1.0, ())
    assert not plot_confusion(many).axes[0].texts


def _named(count: int) -> list[Any]:
    return multiclass_measures(
        outcomes_of(torch.eye(count), torch.arange(count)), [str(number) for number in range(count)]
    )


@pytest.mark.parametrize("place", [".", "deep", "a/b"])
def test_all_splits_of_a_folder_are_evaluated_together_by_the_names_of_their_classes(
    place: str, tmp_path: Path
) -> None:
    for split, count in (("train", 2), ("val", 1)):
        for name in ("red", "green", "blue"):
            (tmp_path / place / split / name).mkdir(parents=True)
            for number in range(count):
                image = color(*(255 * (name == each) for each in ("red", "green", "blue")))
                image.save(tmp_path / place / split / name / f"{number}.png")
    found = evaluate_classifier(brightness(), tmp_path, eval_split=None)
    assert (found.num_images, found.metrics["accuracy"]) == (9, 1.0)

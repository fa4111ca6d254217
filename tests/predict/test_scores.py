"""The scores of images are those of their files, also beside unreadable ones, and a table holds all of them."""

from pathlib import Path

import pytest
import torch
from conftest import write_images
from refusal import refused
from trained_runs import brightness

from timm_accel.predict import Scores, evaluate_classifier, evaluation_of, score_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", {"red": 4, "green": 3}, size=8)


def test_each_image_has_its_path_label_and_probabilities_also_after_an_unreadable_one(folder: Path) -> None:
    (folder / "green" / "001.png").write_bytes(b"no image")
    classifier = brightness()
    scores = score_images(classifier, folder, eval_split=None, batch_size=2)
    assert scores.unreadable == [str(folder / "green" / "001.png")]
    assert scores.missing_classes == ["blue"]
    assert sorted(scores.paths) == sorted(str(path) for path in folder.rglob("*.png") if "green/001" not in str(path))
    for index, path in enumerate(scores.paths):
        assert scores.labels_of(index) == (Path(path).parent.name,)
        [prediction] = classifier.predict(path, top_k=3)
        expected = dict(zip(prediction.labels, prediction.scores, strict=True))
        assert [expected[name] for name in scores.class_names] == pytest.approx(scores.probabilities[index].tolist())


def test_an_evaluation_of_scores_is_that_of_the_classifier(folder: Path) -> None:
    scores = score_images(brightness(temperature=0.5), folder, eval_split=None, tta=("hflip",))
    evaluation = evaluate_classifier(brightness(temperature=0.5), folder, eval_split=None, tta=("hflip",))
    assert evaluation_of(scores) == evaluation
    assert evaluation.temperature == 0.5
    assert scores.losses.mean().item() == pytest.approx(evaluation.metrics["negative_log_likelihood"])


def test_a_table_holds_all_of_it_odd_names_included(folder: Path, tmp_path: Path) -> None:
    (folder / "red" / "a\x1b[2J;b.png").write_bytes((folder / "red" / "000.png").read_bytes())
    (folder / "red" / "001.png").write_bytes(b"")
    scores = score_images(brightness(), folder, eval_split=None)
    scores.to_parquet(tmp_path / "scores.parquet")
    read = Scores.from_parquet(tmp_path / "scores.parquet")
    assert torch.equal(read.probabilities, scores.probabilities)
    assert torch.equal(read.targets, scores.targets)
    tensors = ("probabilities", "targets")
    assert {k: v for k, v in vars(read).items() if k not in tensors} == {
        k: v for k, v in vars(scores).items() if k not in tensors
    }


def test_a_table_holds_several_labels_an_image(tmp_path: Path) -> None:
    targets = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    probabilities = torch.tensor([[0.5, 0.5], [0.25, 0.5], [0.5, 1.0]], dtype=torch.float64)
    scores = Scores(["a", "b", "c"], targets, probabilities, ["x;y", "z"], [], [])
    scores.to_parquet(tmp_path / "scores.parquet")
    read = Scores.from_parquet(tmp_path / "scores.parquet")
    assert torch.equal(read.targets, targets)
    assert [read.labels_of(index) for index in range(3)] == [("x;y", "z"), (), ("z",)]
    log2 = torch.tensor(2.0).log().item()
    assert read.losses.tolist() == pytest.approx([log2, (log2 + torch.tensor(4 / 3).log().item()) / 2, log2 / 2])


def test_some_images_in_another_order() -> None:
    probabilities = torch.eye(3, dtype=torch.float64)
    scores = Scores(["a", "b", "c"], torch.tensor([0, 1, 1]), probabilities, ["x", "y", "z"], [], ["z"])
    taken = scores.take(scores.losses.argsort(descending=True, stable=True)[:2])
    assert taken.paths == ["c", "a"]
    assert taken.targets.tolist() == [1, 0]
    assert torch.equal(taken.probabilities, probabilities[[2, 0]])


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_file_that_is_no_table_of_scores_is_refused(content: bytes | None, tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "scores.parquet"
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"path": ["a"]}), path)
    else:
        path.write_bytes(content)
    with refused(ValueError, "Expected a parquet file with the scores of images"):
        Scores.from_parquet(path)
    with refused(FileNotFoundError, "does not exist"):
        Scores.from_parquet(tmp_path / "absent.parquet")
    scores = Scores(["a"], torch.tensor([0]), torch.ones(1, 1, dtype=torch.float64), ["x"], [], [])
    with refused(ValueError, "Expected path to end in .parquet"):
        scores.to_parquet(tmp_path / "scores.csv")

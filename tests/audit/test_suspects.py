"""Wrong labels, outliers and ambiguous images are found among good ones, and their list is taken back."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import write_images
from pyarrow import parquet
from refusal import refused

from timm_accel.audit import Suspect, audit, find_suspects, write_corrected, write_suspects
from timm_accel.data import ManifestReader, Source
from timm_accel.data.splits.excluded_images import STAY
from timm_accel.predict import Scores
from timm_accel.text_files import read_csv


def scored(paths: list[str], labels: list[int], names: list[str], wrong: list[int] = [], seed: int = 0) -> Scores:  # noqa: B006
    """Scores that are sure of the labels, but for those that are wrong, whose next class they are sure of."""
    generator, count = torch.Generator().manual_seed(seed), len(names)
    probabilities = torch.rand(len(labels), count, generator=generator, dtype=torch.float64) * 0.05
    right = torch.tensor(labels)
    right[wrong] = (right[wrong] + 1) % 2
    probabilities[range(len(labels)), right] += 1
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    missing = [name for number, name in enumerate(names) if number not in labels]
    return Scores(paths, torch.tensor(labels), probabilities, names, [], missing)


def test_wrong_labels_outliers_and_ambiguous_images_are_found_each_once() -> None:
    scores = scored([f"{number}.png" for number in range(90)], [number % 3 for number in range(90)],
                    ["cat", "dog", "owl", "yak"], wrong=[0, 1, 30])  # fmt: skip
    scores.probabilities[[50, 60]] = torch.tensor(
        [[0.34, 0.33, 0.33, 0.0], [0.05, 0.42, 0.48, 0.05]], dtype=torch.float64
    )
    found = find_suspects(scores)
    assert {each.path for each in found if each.kind == "label"} == {"0.png", "1.png", "30.png"}
    assert [(each.path, each.kind) for each in found[3:]] == [("50.png", "outlier"), ("60.png", "ambiguous")]
    assert {each.path: (each.label, each.suggestion) for each in found[:3]} == {
        "0.png": ("cat", "dog"),
        "1.png": ("dog", "cat"),
        "30.png": ("cat", "dog"),
    }
    worst = [each.score for each in found[:3]]
    assert worst == sorted(worst)


def test_scores_without_a_fault_have_no_suspects() -> None:
    assert find_suspects(scored([str(n) for n in range(40)], [n % 2 for n in range(40)], ["cat", "dog"])) == ()


def table(rows: list[tuple[list[float], int]]) -> Scores:
    """Scores of 0.png, 1.png, …, from their probabilities and label."""
    probabilities = torch.tensor([row for row, _ in rows], dtype=torch.float64)
    names = [f"c{number}" for number in range(probabilities.shape[1])]
    return Scores([f"{n}.png" for n in range(len(rows))], torch.tensor([each for _, each in rows]), probabilities,
                  names, [], [])  # fmt: skip


def confused() -> Scores:
    """300 images: 15 labels are wrong; the model takes 30 others for the next class, but only with 0.6."""
    rows = []
    for number in range(300):
        label, following = number % 3, (number + 1) % 3
        own, other = (0.02, 0.96) if number % 20 == 2 else (0.3, 0.6) if number % 10 == 1 else (0.9, 0.05)
        row = [(1 - own - other)] * 3
        row[label], row[following] = own, other
        rows.append((row, label))
    return table(rows)


def test_labels_that_the_model_only_confuses_are_not_named() -> None:
    found = [each for each in find_suspects(confused()) if each.kind == "label"]
    assert {int(Path(each.path).stem) % 20 for each in found} == {2}
    assert len(found) == 15


def test_a_label_is_named_only_where_the_prediction_is_another() -> None:
    rows = [([0.9, 0.05, 0.05], 0), ([0.05, 0.9, 0.05], 1), ([0.3, 0.3, 0.4], 2)] * 20
    rows[0], rows[1] = ([0.34, 0.33, 0.33], 0), ([0.1, 0.44, 0.46], 1)  # the first has the lowest score of its label
    found = find_suspects(table(rows))
    assert [each.path for each in found if each.kind == "label"] == []
    assert all(each.suggestion != each.label for each in found if each.kind == "label")


def test_an_unsure_image_of_two_classes_lies_between_them_and_is_no_outlier() -> None:
    rows = [([0.97, 0.03], 0), ([0.03, 0.97], 1)] * 20
    rows[7] = ([0.51, 0.49], 1)
    assert [(each.path, each.kind) for each in find_suspects(table(rows))] == [("7.png", "ambiguous")]
    rows = [([0.96, 0.02, 0.02], 0), ([0.02, 0.96, 0.02], 1), ([0.02, 0.02, 0.96], 2)] * 20
    rows[0] = ([0.34, 0.33, 0.33], 0)
    assert [(each.path, each.kind) for each in find_suspects(table(rows))] == [("0.png", "outlier")]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (table([([0.9, 0.1], 0), ([float("nan"), 0.1], 1)]), ("probabilities", "nan for '1.png'")),
        (table([([0.9, 0.1], 0), ([0.5, float("inf")], 1)]), ("probabilities", "inf for '1.png'")),
        (table([([-0.25, 0.1], 0), ([0.5, 0.5], 1)]), ("probabilities", "-0.25 for '0.png'")),
        (table([([0.9, 0.1], 0)] * 4), ("at least two classes", "4 images of 1")),
        (table([([0.9, 0.1], 0)]).take([]), ("at least two classes", "0 images of 0")),
    ],
)
def test_scores_that_judge_no_label_are_refused(scores: Scores, words: tuple[str, ...]) -> None:
    with refused(ValueError, "Expected scores", *words):
        find_suspects(scores)


def test_wrong_labels_of_multi_label_images_are_found() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]).repeat(10, 1)
    probabilities = targets.double() * 0.9 + 0.05
    targets[4] = torch.tensor([0.0, 1.0])
    scores = Scores([str(number) for number in range(40)], targets, probabilities, ["sun", "sea"], [], [])
    [found] = find_suspects(scores)
    assert (found.path, found.label, found.suggestion, found.kind) == ("4", "sea", "sun", "label")
    assert found.score == pytest.approx(0.05)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", {"cat": 12, "dog": 12})


def scores_of(data: Path, **options: Any) -> Scores:
    paths = sorted(map(str, data.rglob("*.png")))
    return scored(paths, [int("dog" in path) for path in paths], ["cat", "dog"], **options)


def test_an_audit_lists_the_suspects_of_predictions(data: Path, tmp_path: Path) -> None:
    scores = scores_of(data, wrong=[3])
    scores.to_parquet(tmp_path / "scores.parquet")
    for predictions in (scores, tmp_path / "scores.parquet"):
        found = audit(data, num_workers=0, progress=False, predictions=predictions)
        assert [each.path for each in found.suspects] == [str(data / "cat" / "003.png")]
        expected = f"Predictions find 1 image whose label is likely wrong: {data}/cat/003.png (cat, or dog?)."
        assert expected in found.problems()
    assert '"suggestion": "dog"' in found.to_json()


def test_the_list_is_taken_back_to_leave_images_out_and_to_correct_labels(data: Path, tmp_path: Path) -> None:
    scores = scores_of(data, wrong=[3, 20])
    suspects = find_suspects(scores)
    write_suspects(suspects, tmp_path / "suspects.csv")
    rows = read_csv(tmp_path / "suspects.csv")
    assert [(Path(row["path"]).name, row["label"], row["suggestion"], row["kind"]) for row in rows] == [
        (Path(each.path).name, each.label, each.suggestion, "label") for each in suspects
    ]
    whole = Source(data)
    source = Source(data, exclude=tmp_path / "suspects.csv")
    left = [
        {reader.filename(number, absolute=True) for number in range(len(reader))}
        for reader in (source.open("train"), source.open("val"))
    ]
    assert left[0] | left[1] == set(scores.paths) - {each.path for each in suspects}
    train = whole.open("train")
    assert left[0] <= {train.filename(number, absolute=True) for number in range(len(train))}  # the split is the same

    write_corrected(scores, suspects, tmp_path / "corrected.csv")
    reader = ManifestReader(tmp_path / "corrected.csv")
    labels = {reader.filename(number, absolute=True): reader.labels[number] for number in range(len(reader))}
    assert labels[str(data / "cat" / "003.png")] == 1
    assert labels[str(data / "cat" / "004.png")] == 0
    assert sum(labels.values()) == 12


def exclude(data: Path, rows: str) -> list[str]:
    """Return the names of the images that a file leaves."""
    (path := data.parent / "exclude.csv").write_text(rows)
    reader = Source({"train": data}, exclude=path).open("train")
    return [reader.filename(number) for number in range(len(reader))]


@pytest.mark.parametrize(
    ("rows", "left_out", "sentence"),
    [
        (
            "path,kind\ncat/000.png,label\ncat/001.png,outlier\ncat/002.png,ambiguous\ndog/000.png,ambiguous\n",
            {"cat/000.png"},
            "leaves out 1 image of train, and keeps 1 outlier image and 2 ambiguous images: empty",
        ),
        (
            "path,kind\ncat/000.png,label\ncat/001.png,\ndog/002.png,scratch\n",  # a list of somebody
            {"cat/000.png", "cat/001.png", "dog/002.png"},
            "leaves out 3 images of train.",
        ),
        ("path\ndog/003.png\n", {"dog/003.png"}, "leaves out 1 image of train."),
        (
            "kind,path\nambiguous,dog/003.png\n",
            set(),
            "leaves out 0 images of train, and keeps 1 ambiguous image: empty",
        ),
        (
            "path,kind\ncat/001.png,label\ncat/001.png,outlier\n",
            {"cat/001.png"},
            "leaves out 1 image of train.",
        ),
    ],
)
def test_a_list_leaves_out_no_outliers_and_no_ambiguous_images_and_says_so(
    rows: str, left_out: set[str], sentence: str, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = exclude(data, "path\n")
    assert caplog.messages == []
    assert set(whole) - set(exclude(data, rows)) == left_out
    [message] = caplog.messages
    assert message.startswith(f"{str(data.parent / 'exclude.csv')!r} {sentence}")
    assert ("keeps" in message) == ("keeps" in sentence)


def test_the_kinds_that_stay_are_those_of_the_suspects(data: Path) -> None:
    assert {"label", *STAY} == set(get_args(Suspect.__annotations__["kind"]))


def test_a_list_of_other_images_or_of_all_is_refused(data: Path) -> None:
    every = exclude(data, "path\n")
    with refused(ValueError, "name some of the 24 images of train", "with none of them"):
        exclude(data, "path,kind\nelsewhere.png,ambiguous\n")
    with refused(ValueError, "name some of the 24 images of train", "with all of them"):
        exclude(data, "path\n" + "\n".join(every))


def test_predictions_of_other_images_or_classes_are_refused(data: Path) -> None:
    with refused(ValueError, "Expected predictions of images of the data", "1 other image of 24", "elsewhere.png"):
        scores = scores_of(data)
        scores.paths[5] = "elsewhere.png"
        audit(data, num_workers=0, progress=False, predictions=scores)
    with refused(ValueError, "Expected predictions of the classes of the data", "'cats'", "Did you mean 'cat'?"):
        scores = scores_of(data)
        scores.class_names[0] = "cats"
        audit(data, num_workers=0, progress=False, predictions=scores)
    with refused(FileNotFoundError, "which does not exist"):
        audit(data, num_workers=0, progress=False, predictions=data / "absent.parquet")
    good = data.parent / "scores.parquet"
    scores_of(data).to_parquet(good)
    table = parquet.read_table(good)
    for name, content in {
        "empty.parquet": None,
        "without_column.parquet": table.drop_columns("labels"),
        "without_classes.parquet": table.replace_schema_metadata(None),
    }.items():
        if content is None:
            (data.parent / name).write_bytes(b"")
        else:
            parquet.write_table(content, data.parent / name)
        with refused(ValueError, "Expected a parquet file with the scores of images", name):
            audit(data, num_workers=0, progress=False, predictions=data.parent / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path\nelsewhere.png\n", "with none of them"),
        ("file\ncat/000.png\n", "with the column path"),
        (None, "which does not exist"),
        ("path\n" + "\n".join(f"{name}/{number:03d}.png" for name in ("cat", "dog") for number in range(12)), "all of"),
        (b"path\n\xff\n", "a CSV in UTF-8"),
    ],
)
def test_a_list_that_excludes_nothing_or_all_is_refused(content: Any, words: str, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(FileNotFoundError if content is None else ValueError, "Expected exclude", words):
        Source(data, exclude=path).open("train")

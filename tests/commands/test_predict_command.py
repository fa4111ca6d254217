"""The command predict: a line for each image, a file, and an exit code."""

import json
import os
import platform
import shutil
from pathlib import Path

import pytest
from refusal import refused
from screens import Screen
from trained_runs import draw_image, trained_run

from timm_accel import load_classifier
from timm_accel.commands.predict import predict


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        draw_image(number, 9).save(folder / name)
    return folder


def test_a_line_and_a_row_of_the_file_for_each_image(photos: Path, screen: Screen) -> None:
    run, out = str(trained_run().run), photos.parent / "out.csv"
    lines = screen.run(predict, run, [str(photos)], top_k=2, out=str(out), columns=200)
    expected = load_classifier(run).predict(photos, top_k=2)
    assert lines == [
        f"{each.path}  {each.labels[0]} {each.scores[0]:.3f}  {each.labels[1]} {each.scores[1]:.3f}"
        for each in expected
    ]
    assert len(out.read_text().splitlines()) == 3


def test_options_reach_the_classifier(photos: Path, screen: Screen) -> None:
    run = str(trained_run().run)
    for tta in (["hflip"], ["hflip", "vflip"]):
        out = photos.parent / "out.json"
        screen.run(predict, run, [str(photos / "a.png")], top_k=1, tta=tta, out=str(out), batch_size=1, device="cpu")
        (expected,) = load_classifier(run).predict([photos / "a.png"], top_k=1, tta=tta)
        assert json.loads(out.read_text())[0]["scores"] == list(expected.scores)


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_shows_the_same_numbers(photos: Path, screen: Screen, columns: int) -> None:
    deep = photos.parent / "a_long_name_of_a_folder" / "写真" / "2026"
    shutil.move(photos, deep)
    lines = screen.run(predict, str(trained_run().run), [str(deep)], columns=columns)
    assert len(lines) == (4 if columns == 40 else 2)
    for name, each in zip(("a.png", "b.png"), load_classifier(trained_run().run).predict(deep, 3), strict=True):
        where = next(number for number, line in enumerate(lines) if f"/{name}" in line)
        shown = " ".join(lines[where : where + (2 if columns == 40 else 1)]).split()
        assert shown[-6:] == [
            word for label, score in zip(each.labels, each.scores, strict=True) for word in (label, f"{score:.3f}")
        ]


def test_the_exit_code_tells_that_an_image_could_not_be_read(photos: Path, screen: Screen) -> None:
    (photos / "c.png").write_bytes(b"no image")
    code, lines = screen.end(predict, str(trained_run().run), [str(photos / name) for name in ("a.png", "c.png", "no")])
    assert code == 1
    assert [line for line in lines if " 0." in line and "a.png" in line]
    assert "no image of a kind that Pillow" in "\n".join(lines)
    assert "No such file" in "\n".join(lines)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (FileNotFoundError, {"model": "/no/such"}, ["path to be a run", "'/no/such'", "Correct the path"]),
        (FileNotFoundError, {"model": "photos/../photo"}, ["which does not exist", "Did you mean", "photos'?"]),
        (FileNotFoundError, {"images": ["photos/a.pngg"]}, ["which does not exist", "Did you mean 'photos/a.png'"]),
        (ValueError, {"images": ["https://x.org/a.png"]}, ["got the URL"]),
        (ValueError, {"out": "out.txt"}, ["out to end in .csv, .json, .parquet", "out.txt"]),
        (OSError, {"out": "photos/a.png/out.csv"}, ["path to be where files can be written"]),
        (IsADirectoryError, {"out": "folder.csv"}, ["got the folder"]),
        (ValueError, {"tta": ["hflop"]}, ["tta", "Did you mean 'hflip'"]),
        (ValueError, {"top_k": 0}, ["top_k to be at least 1"]),
        (ValueError, {"device": "gpu"}, ["device to be one that this machine has"]),
    ],
)
def test_a_mistake_is_one_sentence_before_the_work(
    photos: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], change: dict, words: list[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("folder.csv").mkdir()
    options = {"model": str(trained_run().run), "images": ["photos"]} | change
    with refused(kind, *words):
        screen.run(predict, **options)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["folder.csv", "photos"]


def begin(run: Path, process: int, host: str) -> None:
    """Leave the lock of a process in a folder."""
    run.mkdir(exist_ok=True)
    (run / "lock").write_text(f"{process}\n{host}\n")


def test_a_run_in_progress_is_used_and_told_of(photos: Path, screen: Screen, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run().run, run)
    begin(run, os.getpid(), platform.node())
    for model in (run, run / "best", run / "state" / "latest"):
        lines = screen.run(predict, str(model), [str(photos)])
        assert len(lines) == 2
        assert screen.error.startswith(f"The run {str(run)!r} is in progress (process {os.getpid()} on ")
    begin(run, 5, "another-host")
    screen.run(predict, str(run), [str(photos)])
    assert "(process 5 on another-host)" in screen.error


def test_a_killed_run_is_not_in_progress(photos: Path, screen: Screen, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run().run, run)
    begin(run, 2**22 + 1, platform.node())  # above the largest number of a process
    screen.run(predict, str(run), [str(photos)])
    assert screen.error == ""
    begin(run, os.getpid(), platform.node())
    os.utime(run / "lock", (1, 1))  # the number belongs to a younger process
    screen.run(predict, str(run), [str(photos)])
    assert screen.error == ""


def test_a_run_without_weights_tells_what_it_waits_for(photos: Path, screen: Screen, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin(run, os.getpid(), platform.node())
    with refused(FileNotFoundError, str(run), "a run in progress", str(os.getpid()), "Wait for that"):
        screen.run(predict, str(run), [str(photos)])
    assert screen.capsys.readouterr() == ("", "")  # nothing of "its best weights up to now"
    (run / "lock").unlink()
    (run / "recipe.yaml").write_text("lr: 1")
    with refused(FileNotFoundError, str(run), "a run that ended before its first evaluation", "--resume auto"):
        screen.run(predict, str(run), [str(photos)])
    (run / "recipe.yaml").unlink()
    with refused(FileNotFoundError, "Train with SaveBestCallback"):
        screen.run(predict, str(run), [str(photos)])

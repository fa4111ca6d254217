"""What `predict` takes: each kind of path, image and list, or a sentence that refuses it."""

import io
import os
import tempfile
import zipfile
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import refused
from trained_runs import brightness, draw_image

from timm_accel.predict import Prediction


def predict(images: Any, **options: Any) -> list[Prediction]:
    return brightness().predict(images, top_k=1, progress=False, **options)


class Fspath:
    def __init__(self, path: str | bytes) -> None:
        self.path = path

    def __fspath__(self) -> str | bytes:
        return self.path


class Columns:
    """A table, as a DataFrame: iteration yields the names of its columns."""

    columns = ("path",)

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.fixture
def green(tmp_path: Path) -> str:
    draw_image(1, 0).save(tmp_path / "green.png")
    return str(tmp_path / "green.png")


def zip_member(path: str) -> zipfile.Path:
    with zipfile.ZipFile(f"{path}.zip", "w") as file:
        file.write(path, "a.png")
    return zipfile.Path(f"{path}.zip", "a.png")


def spooled(content: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(content)  # its position is at its end
    return file


def read(path: str) -> bytes:
    return Path(path).read_bytes()


IN_MEMORY = {
    "bytes": read,
    "bytearray": lambda path: bytearray(read(path)),
    "memoryview": lambda path: memoryview(read(path)),
    "BytesIO": lambda path: io.BytesIO(read(path)),
    "a file at its end": lambda path: spooled(read(path)),
    "a path in a zip": zip_member,
    "a PIL image": Image.open,
    "an array": lambda path: np.asarray(Image.open(path)),
    "a tensor": lambda path: torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1),
}
PATHS = {
    "text": lambda path: path,
    "numpy text": np.str_,
    "Path": Path,
    "PurePath": PurePath,
    "PathLike": Fspath,
    "PathLike of bytes": lambda path: Fspath(os.fsencode(path)),
    "DirEntry": lambda path: next(entry for entry in list(os.scandir(Path(path).parent)) if entry.name == "green.png"),
    "an array without dimensions": np.array,
}
LISTS = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "dict values": lambda paths: dict(enumerate(paths)).values(),
    "array of text": np.array,
    "array of bytes": lambda paths: np.array([os.fsencode(path) for path in paths]),
    "array of objects": lambda paths: np.array([Path(path) for path in paths], dtype=object),
    "array of two dimensions": lambda paths: np.array([[path] for path in paths]),
    "map": lambda paths: map(Path, paths),
    "open files": lambda paths: [io.BytesIO(read(path)) for path in paths],
}


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_an_image_in_memory_is_predicted_as_its_file(kind: str, green: str) -> None:
    (expected,) = predict(green)
    assert predict(IN_MEMORY[kind](green)) == predict([IN_MEMORY[kind](green)])
    assert predict(IN_MEMORY[kind](green)) == [Prediction(None, expected.labels, expected.scores)]
    assert expected.labels == ("green",)


@pytest.mark.parametrize("kind", PATHS)
def test_a_path_of_any_kind_is_predicted(kind: str, green: str) -> None:
    (found,) = predict(PATHS[kind](green))
    assert (found.path, found.labels, found.error) == (green, ("green",), None)


def test_an_open_file_is_predicted(green: str) -> None:
    with open(green, "rb") as file:
        assert predict(file)[0].labels == ("green",)
        assert predict([file, file])[1].labels == ("green",)


@pytest.mark.parametrize(("kind", "num_workers"), [*((kind, 0) for kind in LISTS), ("open files", 2)])
def test_a_list_of_any_kind_is_predicted_in_its_order(kind: str, num_workers: int, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for label, path in zip((2, 0, 1), paths, strict=True):
        draw_image(label, 0).save(path)
    found = predict(LISTS[kind](paths), num_workers=num_workers, batch_size=2)
    assert [each.labels for each in found] == [("blue",), ("red",), ("green",)]


@pytest.mark.parametrize("empty", [[], (), iter(()), np.array([], dtype=str), torch.zeros(0, 3, 8, 8).byte()])
def test_nothing_has_no_predictions(empty: Any) -> None:
    assert predict(empty) == []


def test_a_batch_of_four_dimensions_is_predicted_one_by_one() -> None:
    arrays = np.stack([np.asarray(draw_image(label, 0)) for label in (2, 0)])
    assert [each.labels for each in predict(arrays)] == [("blue",), ("red",)]
    assert [each.labels for each in predict(torch.tensor(arrays).permute(0, 3, 1, 2))] == [("blue",), ("red",)]


def closed(path: str) -> Any:
    with open(path, "rb") as file:
        return file


BAD = {
    "broken bytes": (lambda _: b"broken", None, "no image of a kind that Pillow knows"),
    "no bytes": (lambda _: b"", None, "an empty file"),
    "a closed file": (closed, None, "I/O operation on closed file"),
    "a missing file": (lambda _: "nope.png", "nope.png", "[Errno 2] No such file or directory: 'nope.png'"),
    "an empty path": (lambda _: "", "", "it is no path of a file"),
    "a NUL": (lambda _: "a\0b", "a\0b", "it is no path of a file"),
    "a long name": (lambda _: "a" * 5000, "a" * 5000, "File name too long"),
    "an array without rows": (lambda _: np.zeros((0, 5, 3), np.uint8), None, "an image of 5 × 0 pixels is empty"),
    "a tensor without columns": (lambda _: torch.zeros(3, 5, 0).byte(), None, "an image of 0 × 5 pixels is empty"),
    "an empty PIL image": (lambda _: Image.new("RGB", (0, 5)), None, "an image of 0 × 5 pixels is empty"),
    "a URL": (lambda _: "https://a.b/c.png", "https://a.b/c.png", "the URL 'https://a.b/c.png'. Download it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_item_of_a_list_does_not_lose_the_others(kind: str, green: str) -> None:
    make, path, error = BAD[kind]
    first, bad, last = predict([green, make(green), green])
    assert first.labels == last.labels == ("green",)
    assert (bad.path, bad.labels) == (path, ())
    assert bad.error is not None
    assert error in bad.error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(green: str) -> None:
    os.mkfifo(Path(green).with_name("pipe.png"))
    found = predict(Path(green).parent)
    assert {Path(str(each.path)).name: each.error for each in found} == {
        "green.png": None,
        "pipe.png": "it is no regular file",
    }


@pytest.mark.parametrize(
    "url",
    [
        "http://a.b/c.png",
        "https://a.b/c.png",
        "s3://bucket/key.png",
        "gs://bucket/key.png",
        "hf://datasets/a/b.png",
        "data:image/png;base64,iVBORw0",
        Path("https://a.b/c.png"),
    ],
)
def test_a_url_is_refused_by_name(url: Any) -> None:
    with refused(ValueError, "on this machine", f"the URL {str(url)!r}", "Download it"):
        predict(url)


def test_a_file_url_names_its_remedy(green: str) -> None:
    with refused(ValueError, "the URL 'file:///", "Pass the path"):
        predict(f"file://{green}")


def test_a_folder_that_is_named_like_a_url_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data:").mkdir()
    draw_image(0, 0).save(tmp_path / "data:" / "a.png")
    assert predict("data:/a.png")[0].labels == ("red",)
    assert predict(["data:"])[0].labels == ("red",)


@pytest.mark.parametrize("path", ["", "a\0b", "a" * 5000, "nope", Path("nope")])
def test_a_path_that_does_not_exist_is_refused(path: Any) -> None:
    with refused(FileNotFoundError, "Expected images to be an image, a file or a folder", "does not exist"):
        predict(path)


@pytest.mark.parametrize("table", [{"path": "a.png"}, Counter(["a.png"]), Columns()])
def test_a_table_is_refused_instead_of_its_keys(table: Any) -> None:
    with refused(TypeError, f"got a {type(table).__name__}", "Pass the column"):
        predict(table)


@pytest.mark.parametrize(
    "images", [3, None, [None], [["a.png"]], [np.array(["a.png"])], [{"path": "a.png"}], [float("nan")], object()]
)
def test_what_is_no_image_is_refused(images: Any) -> None:
    with refused(TypeError, "Expected images to be "):
        predict(images)


def test_text_is_no_binary_file(green: str) -> None:
    with refused(TypeError, "binary files", "StringIO", "str", "mode 'rb'"):
        predict(io.StringIO("a.png"))
    with open(green, encoding="latin-1") as text, refused(TypeError, "binary files", "TextIOWrapper", "str", "'rb'"):
        predict([text])

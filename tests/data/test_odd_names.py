"""Every name that the file system has is written by every writer, and read back."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from refusal import contents, refused
from tiny_runs import fit, make_trainer
from trained_runs import brightness, draw_image

from timm_accel.audit import audit
from timm_accel.callbacks import CsvHistoryCallback
from timm_accel.callbacks.unreadable_images import UnreadableImagesCallback
from timm_accel.data import Source
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.readers.manifest_reader import ManifestReader
from timm_accel.predict import evaluate_classifier, write_predictions
from timm_accel.text_files import escaped, json_text, read_csv, unescaped, write_csv, write_json

NAMES = [
    os.fsdecode(name)
    for name in (
        b"caf\xe9.png",  # Latin-1
        b"\xb2\xe8.png",  # GBK
        b"\xff\xfe.png",
        b"\xe4\xb8\xad\xe6.png",  # a character that is cut off
        "猫 é 😀.png".encode(),
        b"two\nlines\r.png",
        b"quote\" and '.png",
        b"a,b;c.png",
        b" spaces .png",
        b"=1+1.png",
        rb"back\slash.png",
        rb"escape\udce9.png",
        rb"escape\u005cudce9.png",
    )
]
ESCAPED = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with an image of each name."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, each in enumerate(NAMES):
            draw_image(label, number).save(tmp_path / "data" / name / each, format="png")
    return tmp_path / "data"


def paths(folder: Path, label: str = "cat") -> list[str]:
    return [str(folder / label / name) for name in NAMES]


@pytest.mark.parametrize("name", [*NAMES, "\ud800", "\\", "\\u", r"\u005", r"\uDCE9", r"C:\users\cat.png", ""])
def test_a_name_comes_back_and_is_utf_8(name: str) -> None:
    assert unescaped(escaped(name)) == name
    escaped(name).encode()
    assert json.loads(json_text({name: [name]}).encode()) == {name: [name]}


def test_a_name_that_utf_8_can_hold_is_written_as_it_is() -> None:
    assert [name for name in NAMES if escaped(name) != name] == [*NAMES[:4], NAMES[5], *NAMES[-2:]]
    assert escaped(ESCAPED) == r"caf\udce9.png"
    assert escaped(r"escape\udce9.png") == r"escape\u005cudce9.png"


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "-x.png", r"\u003d1", "=", "-"]
NUMBERS = ["-0.5", "+3", "-inf", "-1e-05", "nan"]
HARMLESS = ["a=1", "1-2", "'=1", "", "猫", "[-1]", "a\nb"]


def test_a_cell_begins_no_formula_and_is_read_back(tmp_path: Path) -> None:
    cells = [*FORMULAS, *NUMBERS, *HARMLESS, "a\x1b[2J", "a\u202eb"]
    write_csv(tmp_path / "a.csv", [["=head", "cell"], *([number - 1, cell] for number, cell in enumerate(cells))])
    assert [row["cell"] for row in read_csv(tmp_path / "a.csv")] == cells
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == [r"\u003dhead", "cell"]
    assert list(read_csv(tmp_path / "a.csv")[0]) == ["=head", "cell"]
    assert rows[0][0] == "-1"  # a number
    found = dict(zip(cells, (cell for _, cell in rows), strict=True))
    assert [each for each in FORMULAS if not found[each].startswith("\\u")] == []
    assert {each: found[each] for each in [*NUMBERS, *HARMLESS]} == {each: each for each in [*NUMBERS, *HARMLESS]}
    assert not set("\x1b\u202e\t\r") & set("".join(found.values()))


def test_a_manifest_with_a_formula_for_a_name_is_read_back(tmp_path: Path) -> None:
    names = ["=1+1.png", "-2.png", "@x.png", "a\x1bb.png"]
    for name in names:
        draw_image(0, 1).save(tmp_path / name)
    write_csv(tmp_path / "set.csv", [["path", "label"], *([name, "-cat+dog"] for name in names)])
    reader = ManifestReader(tmp_path / "set.csv")
    assert [reader.filename(number) for number in range(4)] == names
    assert reader.class_to_idx == {"-cat+dog": 0}


def test_json_holds_no_control_character_and_is_read_back() -> None:
    value = {"a\x1b": ["\u202e\x9b\x7f\\", "\\u202e"]}
    text = json_text(value)
    assert json.loads(text) == value
    assert not set("\x1b\u202e\x9b\x7f") & set(text)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_predictions_of_every_name_are_read_back(suffix: str, folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / NAMES[0]).write_bytes(b"broken")
    out = tmp_path / f"predictions.{suffix}"
    predictions = brightness().predict(paths(folder), progress=False)
    assert [each.error is None for each in predictions] == [False] + [True] * (len(NAMES) - 1)
    write_predictions(predictions, out)
    if suffix == "json":
        found = [row["path"] for row in json.loads(out.read_text("utf-8"))]
    elif suffix == "csv":
        found = [row["path"] for row in read_csv(out)]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        found = [unescaped(text) for text in parquet.read_table(out)["path"].to_pylist()]
    assert found == paths(folder)


def test_class_names_that_are_not_utf_8_are_written(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    classifier = brightness()
    classifier.class_names[0] = ESCAPED
    predictions = classifier.predict(draw_image(0, 0), progress=False)
    for suffix in ("csv", "json", "parquet"):
        write_predictions(predictions, tmp_path / f"predictions.{suffix}")
    assert read_csv(tmp_path / "predictions.csv")[0]["label_1"] == ESCAPED
    assert ESCAPED in json.loads((tmp_path / "predictions.json").read_text("utf-8"))[0]["labels"]


def test_a_split_of_every_name_is_read_back_by_both_readers(folder: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.csv"
    drawn = {side: reader_paths(Source(folder, split_file=split).open(side)) for side in ("train", "val")}
    assert {side: reader_paths(Source(folder, split_file=split).open(side)) for side in drawn} == drawn
    assert sorted(drawn["train"] + drawn["val"]) == sorted([*paths(folder), *paths(folder, "dog")])
    for side, expected in drawn.items():
        manifest = ManifestReader(split, split=side, root=folder)
        assert reader_paths(manifest) == expected
        assert [Path(path).parent.name for path in expected] == [
            {number: name for name, number in manifest.class_to_idx.items()}[label] for label in manifest.labels
        ]


def reader_paths(reader: Any) -> list[str]:
    return [reader.filename(number, absolute=True) for number in range(len(reader))]


def test_a_parquet_manifest_reads_escaped_names(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    cells = [escaped(path) for path in paths(folder)]
    parquet.write_table(pyarrow.table({"path": cells, "label": ["cat"] * len(cells)}), tmp_path / "set.parquet")
    assert reader_paths(ManifestReader(tmp_path / "set.parquet")) == paths(folder)


def test_spaces_around_a_path_are_dropped_unless_the_name_has_them(tmp_path: Path) -> None:
    for name in ("a.png", " b.png", " c.png ", "c.png"):
        draw_image(0, 0).save(tmp_path / name, format="png")
    (tmp_path / "set.csv").write_text("path,label\n  a.png ,x\n b.png,y\n c.png ,y\nc.png,y\n")
    found = [Path(path).name for path in reader_paths(ManifestReader(tmp_path / "set.csv"))]
    assert found == ["a.png", " b.png", " c.png ", "c.png"]


def test_a_path_with_a_backslash_that_looks_escaped_is_still_found(tmp_path: Path) -> None:
    (tmp_path / r"\udca0").mkdir()
    draw_image(0, 0).save(tmp_path / r"\udca0" / "a.png")
    (tmp_path / "set.csv").write_text("path,label\n\\udca0/a.png,x\n")
    assert reader_paths(ManifestReader(tmp_path / "set.csv")) == [str(tmp_path / r"\udca0" / "a.png")]


@pytest.mark.parametrize("names", [NAMES[:7], NAMES[7:]])
def test_evaluation_and_audit_list_unreadable_files_of_every_name(
    names: list[str], folder: Path, tmp_path: Path
) -> None:
    broken = [folder / "cat" / name for name in names]
    for path in broken:
        path.write_bytes(b"broken")
    classifier = brightness()
    classifier.class_names[:] = ["cat", "dog", "owl"]
    (folder / "owl").mkdir()
    draw_image(2, 0).save(folder / "owl" / "a.png")
    found = evaluate_classifier(classifier, folder, eval_split=None)
    found.to_json(tmp_path / "evaluation.json")
    read = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert sorted(read["unreadable"]) == sorted(map(str, broken))
    str(found).encode()
    report = audit(folder, num_workers=0, progress=False)
    text = report.to_json(tmp_path / "audit.json")
    written = (tmp_path / "audit.json").read_text("utf-8")
    assert json.loads(text) == json.loads(written)
    assert {one["path"] for one in json.loads(text)["unreadable"]} == set(map(str, broken))
    str(report).encode()


def test_bad_images_of_a_run_list_every_name(folder: Path, tmp_path: Path) -> None:
    for name in NAMES[:5]:
        (folder / "cat" / name).write_bytes(b"broken")
    reader = ManifestReader(_manifest(folder, tmp_path))
    data = LabeledImages(reader, small_image, on_error="skip")
    fit(make_trainer(run_dir=tmp_path / "run", callbacks=[UnreadableImagesCallback()]), data)
    rows = read_csv(tmp_path / "run" / "bad_images.csv")
    assert {row["path"] for row in rows} == set(paths(folder)[:5])


def small_image(image: Image.Image) -> Any:
    from torchvision.transforms.functional import to_tensor

    return to_tensor(image.resize((8, 8)))


def _manifest(folder: Path, tmp_path: Path) -> Path:
    rows = [(path, label) for label in ("cat", "dog", "owl") for path in paths(folder, label.replace("owl", "dog"))]
    write_csv(tmp_path / "set.csv", [("path", "label"), *rows])
    return tmp_path / "set.csv"


def test_a_metric_that_is_text_of_any_kind_stays_in_the_history(tmp_path: Path) -> None:
    class Named(CsvHistoryCallback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.run_history.update_metric("worst", f"{ESCAPED} 猫")

    fit(make_trainer(callbacks=[Named()], run_dir=tmp_path), num_epochs=3)
    assert [row["worst"] for row in read_csv(tmp_path / "history.csv")] == [f"{ESCAPED} 猫"] * 3


def test_an_old_report_stays_if_a_new_one_cannot_be_written(tmp_path: Path) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise OSError("broken")

    write_csv(tmp_path / "report.csv", [("path",), ("old",)])
    write_json(tmp_path / "report.json", ["old"])
    before = contents(tmp_path)
    with pytest.raises(OSError, match="broken"):
        write_csv(tmp_path / "report.csv", [("path",), (Unprintable(),)])
    with pytest.raises(TypeError):
        write_json(tmp_path / "report.json", [Unprintable()])
    assert contents(tmp_path) == before


def test_the_files_are_utf_8_in_every_locale(tmp_path: Path) -> None:
    code = (
        "import sys; from timm_accel.text_files import write_csv, write_json, read_csv; "
        "write_csv(sys.argv[1] + '/a.csv', [('path',), ('\\u732b',)]); write_json(sys.argv[1] + '/a.json', '\\u732b'); "
        "assert read_csv(sys.argv[1] + '/a.csv') == [{'path': '\\u732b'}]"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, timeout=100, check=True)
    assert (tmp_path / "a.csv").read_bytes() == "path\r\n猫\r\n".encode()
    assert (tmp_path / "a.json").read_bytes() == '"猫"\n'.encode()


def test_other_programs_read_the_csv(folder: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("path", "error"), *((path, None) for path in paths(folder))])
    rows = list(csv.reader(io.StringIO((tmp_path / "a.csv").read_bytes().decode("utf-8"), newline="")))
    assert [row[0] for row in rows[1:]] == [escaped(path) for path in paths(folder)]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name,side\na,train\n", b'path,split\n"a'])
def test_a_split_file_of_another_kind_is_refused(content: bytes, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_bytes(content)
    with refused(ValueError, "Expected split_file to", "split.csv", "gain"):
        Source(folder, split_file=tmp_path / "split.csv").open("train")

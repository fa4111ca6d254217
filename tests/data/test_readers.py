"""The readers of labels from file names and from manifests."""

import csv
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import refused
from timm.data import ImageDataset, MultiLabelTarget, create_dataset
from timm.data.readers.reader import Reader
from torch.utils.data import DataLoader

from timm_accel.data import LabeledImages, class_names
from timm_accel.data.classes import labels_of
from timm_accel.data.readers.filename_reader import FilenameReader, number_classes
from timm_accel.data.readers.manifest_reader import ManifestReader, manifest_columns

PETS = r"(.+)_\d+"
CAT_DOG = {"cat": 0, "dog": 1}


def write_images(folder: Path, *names: str) -> Path:
    """Write one file of 4 by 4 pixels a name, each as bright as its place in `names`."""
    for brightness, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), brightness).save(folder / name, "PNG")
    return folder


def write_csv(path: Path, *rows: Sequence[object]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_parquet(file: Path, /, **columns: list[Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), file)
    return file


def content(reader: Any) -> list[tuple[int, Any]]:
    """The brightness and the target of each image, as timm's dataset gives them."""
    return [(int(np.asarray(image)[0, 0, 0]), target) for image, target in ImageDataset("", reader=reader)]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    names = ("Abyssinian_2.jpg", "Abyssinian_12.jpg", "great_dane_1.png", "more/Bombay_7.jpeg")
    return write_images(tmp_path / "pets", *names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", "a.png", "b.png", "sub/c.png", "sub/d.png")


@pytest.fixture
def manifest(folder: Path) -> Path:
    return write_csv(
        folder / "labels.csv",
        ("id", "label", "path", "split", "group"),
        (1, "dog", "sub/c.png", "train", "x"),
        (2, "cat", "a.png", "val", "y"),
        (3, "owl", "b.png", "test", "x"),
        (4, "cat", "sub/d.png", "train", ""),
    )


# Labels from file names


def test_the_label_is_what_the_pattern_finds_in_the_name(pets: Path) -> None:
    reader = FilenameReader(pets, PETS)
    assert isinstance(reader, Reader)
    assert reader.class_to_idx == {"Abyssinian": 0, "Bombay": 1, "great_dane": 2}
    assert class_names(ImageDataset("", reader=reader)) == ["Abyssinian", "Bombay", "great_dane"]
    assert reader.filenames() == ["Abyssinian_2.jpg", "Abyssinian_12.jpg", "great_dane_1.png", "more/Bombay_7.jpeg"]
    assert content(reader) == [(0, 0), (1, 0), (2, 2), (3, 1)]


def test_the_articles_labels_are_found(pets: Path) -> None:
    reader = FilenameReader(pets, PETS)
    names = class_names(ImageDataset("", reader=reader))
    for path, target in reader.samples:  # the article's function and its order
        assert names[target] == "_".join(Path(path).name.split("_")[0:-1])
    assert names == sorted(names, key=lambda name: name.lower())


def test_the_group_named_label_is_the_label_among_several(pets: Path) -> None:
    reader = FilenameReader(pets, r"(.)(?P<label>[^_]+)_(.+)")
    assert list(reader.class_to_idx) == ["byssinian", "ombay", "reat"]


def test_a_pattern_may_match_a_part_of_the_name_but_not_the_folder(tmp_path: Path) -> None:
    write_images(tmp_path, "9/x-cat.png", "8/x-dog.png")
    assert FilenameReader(tmp_path, "-(...)").class_to_idx == CAT_DOG
    with refused(ValueError, "Expected pattern to find the label", "none in 2 such as 'x-dog.png' and 'x-cat.png'"):
        FilenameReader(tmp_path, r"(\d)")


def test_a_given_class_map_decides_the_numbers(pets: Path) -> None:
    given = {"Bombay": 0, "great_dane": 1, "Abyssinian": 2, "Beagle": 3}
    reader = FilenameReader(pets, PETS, given)
    assert content(reader) == [(0, 2), (1, 2), (2, 1), (3, 0)]
    assert reader.class_to_idx == given
    assert reader.class_to_idx is not given


def test_files_and_classes_are_in_natural_order(tmp_path: Path) -> None:
    write_images(tmp_path, "10_10.png", "10_9.png", "9_1.png", "B_1.png", "a_1.png")
    reader = FilenameReader(tmp_path, PETS)
    assert list(reader.class_to_idx) == ["9", "10", "a", "B"]
    assert reader.filenames() == ["9_1.png", "10_9.png", "10_10.png", "a_1.png", "B_1.png"]


def test_names_that_differ_in_case_or_zeros_have_an_order_of_their_own(tmp_path: Path) -> None:
    letters = "abcdefghijklmnop"  # the order of a set would be right by chance once in 65,536 runs
    names = [name for letter in letters for name in (letter.upper(), letter)]
    assert list(number_classes(names)) == list(number_classes(reversed(names))) == names
    assert list(number_classes(["1", "01"])) == ["01", "1"]
    write_images(tmp_path, *(f"{zeros}1_{letter}.png" for letter in letters for zeros in ("", "0", "00")))
    files = FilenameReader(tmp_path, r"_(.)").filenames()
    assert files[:4] == ["001_a.png", "01_a.png", "1_a.png", "001_b.png"]


def test_the_endings_are_those_that_pillow_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "a_1.png", "b_1.PNG", "c_1.xyz", "d.txt")
    reader = FilenameReader(tmp_path, PETS)
    assert reader.filenames() == ["a_1.png", "b_1.PNG"]
    assert (reader.files.used, reader.files.left_out) == ({".png": 2}, {".txt": 1, ".xyz": 1})
    monkeypatch.setitem(Image.EXTENSION, ".xyz", "PNG")
    assert FilenameReader(tmp_path, PETS).filenames() == ["a_1.png", "b_1.PNG", "c_1.xyz"]


def test_filenames_are_relative_absolute_or_bare(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pets.parent)
    reader = FilenameReader("pets", PETS)
    monkeypatch.chdir("/")
    assert reader.filename(3) == "more/Bombay_7.jpeg"
    assert reader.filename(3, basename=True) == "Bombay_7.jpeg"
    assert reader.filename(3, absolute=True) == str(pets / "more" / "Bombay_7.jpeg")
    assert content(reader)[3] == (3, 1)


@pytest.mark.parametrize(("pattern", "words"), [("(.+", "unterminated"), ("*(.)", "nothing to repeat")])
def test_a_pattern_that_is_no_expression_is_refused(pets: Path, pattern: str, words: str) -> None:
    with refused(ValueError, "Expected pattern to be a regular expression, but got", pattern, words, "Abyssinian_12"):
        FilenameReader(pets, pattern)


@pytest.mark.parametrize(("pattern", "count"), [(r".+_\d+", 0), (r"(.+)_(\d+)", 2), (r"(?P<name>.+)_(\d+)", 2)])
def test_a_pattern_needs_one_group_or_the_one_named_label(pets: Path, pattern: str, count: int) -> None:
    with refused(ValueError, "Expected pattern to have one group", "'(?P<label>.+)'", pattern[-3:], f"{count} groups."):
        FilenameReader(pets, pattern)


def test_a_pattern_that_is_no_text_is_refused(pets: Path) -> None:
    with refused(TypeError, "Expected pattern to be text", "but got 5. For 'Abyssinian_12.jpg'"):
        FilenameReader(pets, 5)


def test_a_folder_that_is_missing_or_without_images_is_refused(tmp_path: Path) -> None:
    file = write_images(tmp_path, "a.png") / "a.png"
    for root in (tmp_path / "none", file):
        with refused(FileNotFoundError, "Expected root to be a folder", root, "not a folder. Correct the path."):
            FilenameReader(root, PETS)
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "empty" / "a_1.txt").touch()
    with refused(FileNotFoundError, "Expected root", tmp_path / "empty", "files are left out: 1 file (1 .txt)."):
        FilenameReader(tmp_path / "empty", PETS)


def test_files_that_do_not_match_are_counted_and_three_are_named(pets: Path) -> None:
    write_images(pets, "more/odd.png", "odd1.png", "odd2.png")
    start = "Expected pattern to find a label in the name of every file, but got"
    with refused(
        ValueError, start, "3 of 7: 'more/odd.png', 'odd1.png', 'odd2.png'. Widen it, or move these files out"
    ):
        FilenameReader(pets, PETS)
    write_images(pets, "odd10.png")
    with refused(ValueError, start, "4 of 8: 'more/odd.png', 'odd1.png', 'odd2.png', …. Widen it"):
        FilenameReader(pets, PETS)


def test_an_empty_label_is_none(tmp_path: Path) -> None:
    write_images(tmp_path, "_1.png", "cat_1.png", "x.png")
    with refused(ValueError, "finds none in 2 of 3: '_1.png', 'x.png'"):
        FilenameReader(tmp_path, r"(.*)_\d|x")


def test_a_label_outside_the_class_map_is_refused_with_the_nearest(pets: Path) -> None:
    known = {"Abysinian": 0, "Bombay": 1, "great_dane": 2}
    with refused(ValueError, "class_to_idx, but got 'Abyssinian' of", "Abyssinian_2.jpg. Did you mean 'Abysinian'?"):
        FilenameReader(pets, PETS, known)


# Labels from a manifest


def test_a_manifest_gives_images_labels_and_groups_in_its_order(manifest: Path) -> None:
    reader = ManifestReader(manifest)
    assert isinstance(reader, Reader)
    assert reader.class_to_idx == {"cat": 0, "dog": 1, "owl": 2}
    assert content(reader) == [(2, 1), (0, 0), (1, 2), (3, 0)]
    assert reader.labels == [1, 0, 2, 0]
    assert reader.groups == ["x", "y", "x", None]
    assert reader.filenames() == ["sub/c.png", "a.png", "b.png", "sub/d.png"]
    assert reader.filename(0, absolute=True) == str(manifest.parent / "sub/c.png")
    assert reader.filename(0, basename=True) == "c.png"


def test_a_split_has_its_rows_and_the_classes_of_the_whole_file(manifest: Path) -> None:
    train, val = (ManifestReader(manifest, split) for split in ("train", "val"))
    assert (content(train), content(val)) == ([(2, 1), (3, 0)], [(0, 0)])
    assert train.class_to_idx == val.class_to_idx == {"cat": 0, "dog": 1, "owl": 2}
    assert (train.groups, val.groups) == (["x", None], ["y"])
    assert (train.labels, val.labels) == ([1, 0], [0])


@pytest.mark.parametrize(
    ("split", "first"),
    [
        *[(name, 2) for name in ("train", "training", "Train", " TRAINING ")],
        *[(name, 0) for name in ("val", "valid", "validation", "eval", "evaluation", "Val")],
        ("test", 1),
    ],
)
def test_synonyms_of_a_split_are_the_same_and_test_is_apart(manifest: Path, split: str, first: int) -> None:
    assert content(ManifestReader(manifest, split))[0][0] == first
    written = manifest.read_text().replace("train", "Training").replace("val", "evaluation")
    manifest.write_text(written.replace("test", "Test"))
    assert content(ManifestReader(manifest, split))[0][0] == first


def test_the_synonyms_are_those_that_timm_searches_folders_by(tmp_path: Path, manifest: Path) -> None:
    write_images(tmp_path, "validation/cat/1.png", "training/cat/1.png")
    for split, folder in (("eval", "validation"), ("train", "training")):
        assert create_dataset("", str(tmp_path), split).reader.root == str(tmp_path / folder)
    manifest.write_text(manifest.read_text().replace("val", "validation").replace("train", "training"))
    assert (len(ManifestReader(manifest, "eval")), len(ManifestReader(manifest, "train"))) == (1, 2)


def test_a_split_that_the_file_lacks_is_refused_with_those_it_has(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("val", "train"))
    with refused(ValueError, "Expected split to be one that", manifest, "has, 'test', 'train', but got 'validation'."):
        ManifestReader(manifest, "validation")


def test_a_split_needs_the_column_and_every_row_one(folder: Path, manifest: Path) -> None:
    bare = write_csv(folder / "bare.csv", ("path", "label"), ("a.png", "cat"))
    assert ManifestReader(bare).groups is None
    assert ("split" in manifest_columns(bare), "split" in manifest_columns(manifest)) == (False, True)
    with refused(ValueError, "a column 'split', since split is 'train', but got", bare, "['path', 'label']. Add"):
        ManifestReader(bare, "train")
    manifest.write_text(manifest.read_text().replace("val", "").replace("test", ""))
    with refused(ValueError, "Expected every row to have a split, but got 2 of", manifest, "row 3 first. Fill them"):
        ManifestReader(manifest, "train")
    assert len(ManifestReader(manifest)) == 4


def test_paths_start_from_root_or_are_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parent / "labels.csv"
    write_csv(elsewhere, ("path", "label"), ("b.png", "cat"), (folder / "sub" / "d.png", "dog"))
    assert content(ManifestReader(elsewhere, root=folder)) == [(1, 0), (3, 1)]
    monkeypatch.chdir(folder.parent)
    for reader in (ManifestReader("labels.csv", root="data"), ManifestReader(elsewhere, root="data")):
        assert reader.filenames() == ["b.png", "sub/d.png"]
        assert reader.filename(0, absolute=True) == str(folder / "b.png")
    write_csv(elsewhere, ("path", "label"), ("data/./b.png", "cat"), ("data/sub/../a.png", "dog"))
    assert content(ManifestReader("labels.csv")) == [(1, 0), (0, 1)]


def test_a_row_with_two_labels_makes_a_list_of_every_target(folder: Path) -> None:
    rows = [("a.png", "dog; cat"), ("b.png", "owl"), ("sub/c.png", "cat;dog;owl")]
    reader = ManifestReader(write_csv(folder / "m.csv", ("path", "label"), *rows))
    assert reader.class_to_idx == {"cat": 0, "dog": 1, "owl": 2}
    assert content(reader) == [(0, [1, 0]), (1, [2]), (2, [0, 1, 2])]
    dataset = ImageDataset("", reader=reader, target_transform=MultiLabelTarget(len(reader.class_to_idx)))
    targets = torch.stack([target for _, target in dataset])
    assert torch.equal(targets, torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, 1, 1]]))


def test_a_split_with_one_label_a_row_has_lists_too_if_the_file_is_multi_label(folder: Path) -> None:
    rows = [("a.png", "dog;cat", "train"), ("b.png", "dog", "val")]
    path = write_csv(folder / "m.csv", ("path", "label", "split"), *rows)
    assert ManifestReader(path, "val").labels == [[1]]


def test_an_empty_cell_is_an_image_without_any_class_if_the_file_is_multi_label(folder: Path) -> None:
    rows = [
        ("a.png", "dog;cat", "train"),
        ("b.png", "", "train"),
        ("sub/c.png", " ", "val"),
        ("sub/d.png", "cat", "val"),
    ]
    path = write_csv(folder / "m.csv", ("path", "label", "split"), *rows)
    assert ManifestReader(path, "train").labels == [[1, 0], []]
    assert ManifestReader(path, "val").labels == [[], [0]]
    dataset = ImageDataset("", reader=ManifestReader(path), target_transform=MultiLabelTarget(2))
    assert [target.tolist() for _, target in dataset] == [[1, 1], [0, 0], [0, 0], [1, 0]]
    half = write_csv(folder / "m.csv", ("path", "label", "split"), rows[0], ("b.png", "cat;", "train"))
    with refused(ValueError, "empty label in row 3"):
        ManifestReader(half, "train")


def test_minus_one_among_numbers_is_no_label(folder: Path) -> None:
    rows = [("a.png", "0", "train"), ("sub/d.png", "1", "train"), ("b.png", "-1", "test"), ("sub/c.png", "-1", "test")]
    path = write_csv(folder / "m.csv", ("path", "label", "split"), *rows)
    assert ManifestReader(path, "test").labels == [-1, -1]
    assert ManifestReader(path, "train").class_to_idx == ManifestReader(path, "test").class_to_idx == {"0": 0, "1": 1}
    alone = write_csv(folder / "alone.csv", ("path", "label"), ("a.png", "-1"), ("b.png", "-1"))
    assert ManifestReader(alone, others=[path]).labels == [-1, -1]
    with refused(ValueError, "empty label in row 4", "-1 among numbers counts as empty"):
        ManifestReader(path)
    names = write_csv(folder / "names.csv", ("path", "label"), ("a.png", "-1"), ("b.png", "plus"))
    assert ManifestReader(names).class_to_idx == {"-1": 0, "plus": 1}


def test_rows_without_any_label_are_an_unlabeled_set(folder: Path) -> None:
    rows = [("a.png", "dog", "train"), ("b.png", "", "test"), ("sub/c.png", "", "test")]
    path = write_csv(folder / "m.csv", ("path", "label", "split"), *rows)
    assert ManifestReader(path, "test").labels == [-1, -1]
    assert ManifestReader(path, "test").class_to_idx == {"dog": 0}
    with refused(ValueError, "empty label in row 3"):
        ManifestReader(path)


def test_other_manifests_of_a_dataset_count_for_classes_and_for_the_kind_of_labels(folder: Path) -> None:
    test = write_csv(folder / "test.csv", ("path", "label"), ("a.png", "dog"))
    train = write_csv(folder / "train.csv", ("path", "label"), ("b.png", "cat;owl"), ("sub/c.png", "dog"))
    bare = write_csv(folder / "bare.csv", ("path",), ("a.png",))
    assert ManifestReader(test).labels == [0]
    reader = ManifestReader(test, others=[train, bare])
    assert (reader.class_to_idx, reader.labels) == ({"cat": 0, "dog": 1, "owl": 2}, [[1]])
    with refused(ValueError, "a column 'path' and a column 'label'", bare):
        ManifestReader(bare, others=[train])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("trian", "train"),
        ("Vaild", "valid"),
        ("tset", "test"),
        ("validaton", "validation"),
        ("vla", "val"),
        ("tes", "test"),
    ],
)
def test_a_misspelled_split_is_refused_with_its_row(manifest: Path, written: str, meant: str) -> None:
    manifest.write_text(manifest.read_text().replace("b.png,test", f"b.png,{written}"))
    for split in ("train", "val"):
        with refused(ValueError, "a split such as", f"{written!r} in row 4", manifest, f"Did you mean {meant!r}?"):
            ManifestReader(manifest, split)


@pytest.mark.parametrize("other", ["fold_1", "unused", "test_2", "extra-train", "holdout", "dev"])
def test_a_split_of_another_name_is_reported_once_and_can_be_read(
    manifest: Path, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest.write_text(manifest.read_text().replace("b.png,test", f"b.png,{other}"))
    assert [len(ManifestReader(manifest, split)) for split in ("train", "val", other)] == [2, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 4 rows of {str(manifest)!r} have a split of another name: ['{other}']."
    ]


def test_numbers_are_classes_by_their_text_in_natural_order(folder: Path) -> None:
    rows = [("a.png", 10), ("b.png", 9), ("sub/c.png", 10)]
    reader = ManifestReader(write_csv(folder / "m.csv", ("path", "label"), *rows))
    assert reader.class_to_idx == {"9": 0, "10": 1}
    assert reader.labels == [1, 0, 1]


def test_a_given_class_map_decides_the_numbers_of_a_manifest(manifest: Path) -> None:
    given = {"owl": 0, "dog": 1, "cat": 2, "elk": 3}
    reader = ManifestReader(manifest, class_to_idx=given)
    assert reader.labels == [1, 2, 0, 2]
    assert reader.class_to_idx == given
    assert reader.class_to_idx is not given


def test_another_split_may_lack_labels_classes_and_files(folder: Path, manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("owl", ""))
    (folder / "b.png").unlink()
    assert ManifestReader(manifest, "train").class_to_idx == {"cat": 0, "dog": 1}
    manifest.write_text(manifest.read_text().replace("3,,", "3,owl,"))
    assert ManifestReader(manifest, "train", class_to_idx=CAT_DOG).labels == [1, 0]
    with refused(ValueError, "'owl' of row 4"):
        ManifestReader(manifest, "test", class_to_idx=CAT_DOG)


def test_a_csv_may_have_a_bom_spaces_quotes_blank_lines_and_any_letters(folder: Path) -> None:
    write_images(folder, "ä, ö.png")
    text = '\ufeff\r\npath , label\r\n"ä, ö.png", Käse\r\n\r\n a.png,"cat"\r\n'
    (folder / "m.CSV").write_text(text, encoding="utf-8", newline="")
    reader = ManifestReader(folder / "m.CSV")
    assert reader.filenames() == ["ä, ö.png", "a.png"]
    assert list(reader.class_to_idx) == ["cat", "Käse"]


def test_an_empty_manifest_is_refused(folder: Path) -> None:
    for text in ("", "path,label\n", "\n\n"):
        (folder / "m.csv").write_text(text)
        with refused(ValueError, "the manifest to list images, but got", folder / "m.csv", "no rows. Name the columns"):
            ManifestReader(folder / "m.csv")


def test_missing_columns_are_refused_with_those_there_are(folder: Path) -> None:
    for header, columns in (
        ("path;label", "['path;label']"),
        ("path,class", "['path', 'class']"),
        ("Path,label", "['Path', 'label']"),
        ("b.png,dog", "['b.png', 'dog']"),
        ("path,label,label", "['path', 'label', 'label']"),
        ("path,path,label", "['path', 'path', 'label']"),
    ):
        (folder / "m.csv").write_text(f"{header}\na.png,cat,dog\n")
        with refused(ValueError, "a column 'path' and a column 'label', but got", folder / "m.csv", f"with {columns}."):
            ManifestReader(folder / "m.csv")


@pytest.mark.parametrize(
    ("row", "column"), [(",cat", "path"), ("a.png,", "label"), ("a.png", "label"), ("a.png,cat; ;dog", "label")]
)
def test_an_empty_path_or_label_is_refused_with_its_row(folder: Path, row: str, column: str) -> None:
    (folder / "m.csv").write_text(f"path,label\na.png,cat\n\n{row}\n")
    with refused(ValueError, "Expected every row", f"empty {column} in row 4 of", folder / "m.csv", "remove the row."):
        ManifestReader(folder / "m.csv")


def test_missing_images_are_counted_and_three_are_named(folder: Path, manifest: Path) -> None:
    (folder / "sub" / "d.png").unlink()
    (folder / "b.png").unlink()
    (folder / "a.png").unlink()
    (folder / "a.png").mkdir()  # is no image either
    start = "Expected the images of the manifest to exist, but got"
    paths = [repr(str(folder / name)) for name in ("sub/c.png", "a.png", "b.png")]
    with refused(
        FileNotFoundError, start, f"3 of 4 that do not: {paths[1]}, {paths[2]}, '{folder}/sub/d.png'. Correct"
    ):
        ManifestReader(manifest)
    (folder / "sub" / "c.png").unlink()
    (folder / "sub").rmdir()
    with refused(FileNotFoundError, start, f"4 of 4 that do not: {', '.join(paths)}, …. Correct its paths"):
        ManifestReader(manifest)
    (folder / "sub").touch()
    with refused(FileNotFoundError, start, "4 of 4"):
        ManifestReader(manifest)


def test_images_may_be_links(folder: Path, manifest: Path) -> None:
    os.rename(folder / "b.png", folder / "b")
    (folder / "b.png").symlink_to(folder / "b")
    assert content(ManifestReader(manifest, "test")) == [(1, 2)]


def test_each_folder_is_listed_once_and_no_file_looked_at(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, scandir, stat = [], os.scandir, os.stat

    def count(folder: Any) -> Any:
        listed.append(str(folder))
        return scandir(folder)

    def refuse_images(path: Any, *args: Any, **kwargs: Any) -> Any:
        assert not str(path).endswith(".png")
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", count)
    monkeypatch.setattr(os, "stat", refuse_images)
    ManifestReader(manifest)
    assert sorted(listed) == [str(manifest.parent), str(manifest.parent / "sub")]


def test_a_manifest_or_root_that_is_missing_is_refused(folder: Path, manifest: Path) -> None:
    (folder / "folder.csv").mkdir()
    for path in (folder / "none.csv", folder / "none.parquet", folder / "folder.csv"):
        with refused(FileNotFoundError, "Expected path to be a manifest, but got", path, "not a file. Correct"):
            ManifestReader(path)
    with refused(FileNotFoundError, "Expected root to be a folder, but got", folder / "none", "Correct the path."):
        ManifestReader(manifest, root=folder / "none")


def test_a_file_that_is_neither_csv_nor_parquet_is_refused(folder: Path) -> None:
    with refused(ValueError, "ends in .csv, .parquet or .pq, but got", folder / "a.png", "Save it as one."):
        ManifestReader(folder / "a.png")
    for content in (b"PK\x03\x04\xff\xfe", "path,label\na.png,Käse\n".encode("latin-1"), b'path,label\n"a.png,cat\n'):
        (folder / "m.csv").write_bytes(content)
        with refused(ValueError, "the manifest to be a CSV in UTF-8, but got", folder / "m.csv", "Save it as one."):
            ManifestReader(folder / "m.csv")


def test_a_label_outside_the_class_map_is_refused_with_its_row(manifest: Path) -> None:
    start = "Expected every label to be in class_to_idx, but got 'owl' of row 4. "
    with refused(ValueError, start, "Did you mean 'owls'? Correct the label, or add it"):
        ManifestReader(manifest, class_to_idx=CAT_DOG | {"owls": 2})
    with refused(ValueError, start, "Known names: 'cat', 'dog'."):
        ManifestReader(manifest, class_to_idx=CAT_DOG)


@pytest.mark.parametrize("given", [["cat", "dog"], {0: 0, 1: 1}, "cat"])
def test_a_class_map_that_is_no_map_from_text_is_refused(pets: Path, manifest: Path, given: Any) -> None:
    start = f"Expected class_to_idx to be a map from names, which are text, to numbers, but got {given!r}. Pass"
    with refused(TypeError, start):
        ManifestReader(manifest, class_to_idx=given)
    with refused(TypeError, start):
        FilenameReader(pets, PETS, given)


# Parquet


def test_a_parquet_file_reads_as_the_csv(folder: Path, manifest: Path) -> None:
    with manifest.open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: [row[name] or None for row in rows] for name in rows[0]}
    for ending in ("parquet", "pq"):
        write_parquet(folder / f"labels.{ending}", **columns)
        for split in (None, "val"):
            reader, expected = ManifestReader(folder / f"labels.{ending}", split), ManifestReader(manifest, split)
            assert vars(reader) == vars(expected)


def test_numbers_of_a_parquet_file_are_classes_even_where_a_gap_made_them_floats(folder: Path) -> None:
    paths = ["a.png", "b.png", "sub/c.png"]
    whole = ManifestReader(write_parquet(folder / "m.parquet", path=paths, label=[10, 9, 10]))
    assert whole.class_to_idx == {"9": 0, "10": 1}
    assert whole.labels == [1, 0, 1]
    splits = ["train", "train", "test"]
    floats = write_parquet(folder / "m.parquet", path=paths, label=[10.0, 9.0, None], split=splits)
    assert ManifestReader(floats, "train").class_to_idx == {"9": 0, "10": 1}
    with refused(ValueError, "empty label in row 3 of", floats):
        ManifestReader(floats)


def test_lists_in_a_parquet_file_are_multi_label(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    paths = ["a.png", "b.png", "sub/c.png", "sub/d.png"]
    lists = [["dog", "cat"], [], None, ["owl"]]
    for kind in (pyarrow.list_(pyarrow.string()), pyarrow.large_list(pyarrow.string())):
        reader = ManifestReader(write_parquet(folder / "m.parquet", path=paths, label=pyarrow.array(lists, kind)))
        assert (reader.class_to_idx, reader.labels) == ({"cat": 0, "dog": 1, "owl": 2}, [[1, 0], [], [], [2]])
    single = ManifestReader(write_parquet(folder / "m.parquet", path=paths, label=[[10], [9], [10], [9]]))
    assert (single.class_to_idx, single.labels) == ({"9": 0, "10": 1}, [[1], [0], [1], [0]])
    fixed = pyarrow.array([["a", "b"]] * 4, pyarrow.list_(pyarrow.string(), 2))
    assert ManifestReader(write_parquet(folder / "m.parquet", path=paths, label=fixed)).labels == [[0, 1]] * 4
    categories = pyarrow.array(["b", "a", "b", "a"]).dictionary_encode()
    assert ManifestReader(write_parquet(folder / "m.parquet", path=paths, label=categories)).labels == [1, 0, 1, 0]


def test_a_parquet_file_that_cannot_be_read_is_refused(folder: Path) -> None:
    start = "Expected the manifest to be a parquet file of texts and numbers, but got"
    path = write_parquet(folder / "m.parquet", path=[["a.png"]], label=["cat"])
    with refused(ValueError, start, path, "list", "Save it as one."):
        ManifestReader(path)
    for content in (b"", b"path,label\na.png,cat\n"):
        path.write_bytes(content)
        with refused(ValueError, start, path):
            ManifestReader(path)


def test_a_parquet_file_without_rows_or_columns_is_refused(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    empty = pyarrow.array([], pyarrow.string())
    with refused(ValueError, "which has no rows"):
        ManifestReader(write_parquet(folder / "m.parquet", path=empty, label=empty))
    for columns in ({"image": ["a.png"]}, {"path": ["a.png"]}):
        path = write_parquet(folder / "m.parquet", **columns)
        with refused(ValueError, "a column 'path' and a column 'label', but got", path, f"with {list(columns)}."):
            ManifestReader(path)
    twice = pyarrow.table([["a.png"], ["cat"], ["dog"]], names=["path", "label", "label"])
    pytest.importorskip("pyarrow.parquet").write_table(twice, folder / "m.parquet")
    with refused(ValueError, "with ['path', 'label', 'label']."):
        ManifestReader(folder / "m.parquet")


def test_without_pyarrow_a_parquet_file_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "m.parquet").write_bytes(b"PAR1")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refused(ModuleNotFoundError, "Expected the extra 'parquet'", 'pip install "timm_accel[parquet]", or save'):
        ManifestReader(folder / "m.parquet")


# Both


@pytest.fixture(params=["names", "manifest"])
def reader(request: pytest.FixtureRequest, pets: Path, manifest: Path) -> Reader:
    return FilenameReader(pets, PETS) if request.param == "names" else ManifestReader(manifest)


def test_a_reader_gives_open_binary_files(reader: Any) -> None:
    file, target = reader[2]
    with file:
        assert file.read(4) == b"\x89PNG"
    assert target == 2
    assert len(reader) == 4


def test_a_reader_survives_pickling(reader: Any) -> None:
    assert vars(pickle.loads(pickle.dumps(reader))) == vars(reader)


def test_workers_read_what_one_process_reads(reader: Any) -> None:
    dataset = ImageDataset("", reader=reader, transform=lambda image: torch.tensor(np.asarray(image)[0, 0, 0]))
    loader = DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context="fork")
    assert [(image.item(), target.item()) for image, target in loader] == content(reader)


@pytest.mark.skipif(os.sep != "/", reason="there \\ separates folders")
@pytest.mark.parametrize("cell", ["cat\\000.png", "C:\\me\\cat\\000.png", "..\\data\\cat\\000.png"])
def test_paths_of_windows_are_refused_with_their_remedy(cell: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "000.png")
    (tmp_path / "set.csv").write_text(f"path,label\n{cell},cat\n")
    with refused(FileNotFoundError, "1 of 1 that do not", "Write / for \\ in its paths, or pass the root"):
        ManifestReader(tmp_path / "set.csv")


class ReaderOfPaths(Reader):
    """A reader as in the article, whose samples are paths alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.samples = sorted(folder.iterdir())
        self.class_to_idx = CAT_DOG

    def __getitem__(self, index: int) -> Any:
        return open(self.samples[index], "rb"), index % 2

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(self.samples[index])


def test_a_reader_that_lists_no_labels_is_used_as_it_is_but_not_split(tmp_path: Path) -> None:
    reader = ReaderOfPaths(write_images(tmp_path, "a.png", "b.png", "c.png", "d.png"))
    assert [label for _, label in LabeledImages(reader)] == [0, 1, 0, 1]
    for samples in (reader.samples, ["aa", "bb"], None):
        reader.samples = samples
        with refused(TypeError, "reader", "attribute labels", "got ReaderOfPaths without them", "Set self.labels"):
            labels_of(reader)
    reader.labels = [0, 1, 0, 1]
    assert labels_of(reader).tolist() == [0, 1, 0, 1]

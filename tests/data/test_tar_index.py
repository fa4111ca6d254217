"""The index of tars: timm's images and labels, nothing old, nothing written beside the data, and no pickle."""

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusal import contents, refused
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import DataLoader, Dataset

from timm_accel.data.readers import tar_index
from timm_accel.data.readers.tar_reader import TarReader, open_tar

LISTED: list[Any] = []


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tars that were listed since the test last cleared this; an index is kept though its tar is new."""
    found: list[Any] = []
    whole = tar_index._list

    def _list(*arguments: Any) -> Any:
        found.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(tar_index, "_list", _list)
    monkeypatch.setattr(tar_index, "_SETTLED_NS", -(10**18))
    return found


def png(color: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def write_tar(path: Path, names: dict[str, int] | list[str], format: int = tarfile.PAX_FORMAT) -> Path:
    colors = names if isinstance(names, dict) else {name: number for number, name in enumerate(names)}
    with tarfile.open(path, "w", format=format) as tar:
        for name, color in colors.items():
            add(tar, name, png(color))
    return path


def content(reader: TarReader) -> dict[str, tuple[int, str]]:
    """The color and the class of each image by its name."""
    names = list(reader.class_to_idx)
    found = {}
    for index in range(len(reader)):
        file, label = reader[index]
        with file:
            found[reader.filename(index)] = (Image.open(file).getpixel((0, 0)), names[label])
    return found


def samples(reader: Any) -> list[tuple[bytes, int]]:
    found = []
    for index in range(len(reader)):
        file, label = reader[index]
        with file:
            found.append((file.read(), int(label)))
    return found


NAMES = ["b/10.png", "b/9.png", "a 2/1.PNG", "a 10/1.png", "A/x.jpeg", "deep/er/0.jpg", "b/readme.txt", "b/1.png"]


def test_images_order_and_labels_of_a_tar_are_those_of_timm(tmp_path: Path) -> None:
    for number, format in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)):
        path = write_tar(tmp_path / f"{number}.tar", NAMES, format)
        ours, timms = TarReader(path), ReaderImageInTar(str(path))
        assert samples(ours) == samples(timms)
        assert ours.filenames() == timms.filenames()
        assert list(ours.class_to_idx.items()) == list(timms.class_name_to_idx.items())


def test_a_system_without_pread_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", NAMES)
    expected = content(TarReader(path))
    monkeypatch.delattr(os, "pread")  # Windows
    assert content(TarReader(path)) == expected


def test_images_order_and_labels_of_a_folder_of_tars_are_those_of_timm(tmp_path: Path) -> None:
    for number, name in enumerate(("owl", "cat", "dog10", "dog9")):
        write_tar(tmp_path / f"{name}.tar", {f"{name}_{image}.png": 10 * number + image for image in (11, 2, 1)})
    ours, timms = TarReader(tmp_path), ReaderImageInTar(str(tmp_path))
    assert samples(ours) == samples(timms)
    assert list(ours.class_to_idx) == list(timms.class_name_to_idx) == ["cat", "dog9", "dog10", "owl"]
    assert ours.filename(0) == "cat/cat_1.png"


def test_a_tar_in_a_tar_is_read_as_timm_does(tmp_path: Path) -> None:
    for name, color in (("cat", 1), ("dog", 2)):
        write_tar(tmp_path / f"{name}.tar", {f"{name}1.png": color, f"{name}2.png": 10 + color})
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name in ("cat", "dog"):
            tar.add(tmp_path / f"{name}.tar", f"{name}.tar")
    ours, timms = TarReader(tmp_path / "all.tar"), ReaderImageInTar(str(tmp_path / "all.tar"))
    assert samples(ours) == samples(timms)
    assert content(ours)["dog/dog2.png"] == (12, "dog")
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        tar.add(tmp_path / "all.tar", "deep/all.tar")
    assert content(TarReader(tmp_path / "more.tar"))["deep/all/dog/dog2.png"] == (12, "dog")


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_strange_names_are_read(format: int, tmp_path: Path) -> None:
    long = "d" * 120
    strange = os.fsdecode(b"not\xffutf8")
    names = [f"./cat/{'x' * 150}.png", f"/{long}/{long}/1.png", f"./{strange}/{strange}.png", "../dog/../dog/1.png"]
    found = content(TarReader(write_tar(tmp_path / "set.tar", names, format)))
    assert found == {
        f"cat/{'x' * 150}.png": (0, "cat"),
        f"{long}/{long}/1.png": (1, long),
        f"{strange}/{strange}.png": (2, strange),
        "dog/1.png": (3, "dog"),
    }


def test_links_are_followed_and_others_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add(tar, "cat/1.png", png(1))
        add(tar, "cat/hard.png", type=tarfile.LNKTYPE, linkname="./cat/1.png")
        add(tar, "dog/soft.png", type=tarfile.SYMTYPE, linkname="../cat/hard.png")
        add(tar, "dog/broken.png", type=tarfile.SYMTYPE, linkname="none.png")
        add(tar, "dog/loop.png", type=tarfile.SYMTYPE, linkname="loop.png")
        add(tar, "dog/fifo.png", type=tarfile.FIFOTYPE)
        add(tar, "dog/2.png", png(2))
    reader = TarReader(tmp_path / "set.tar")
    assert content(reader) == {
        "cat/1.png": (1, "cat"),
        "cat/hard.png": (1, "cat"),
        "dog/soft.png": (1, "dog"),
        "dog/2.png": (2, "dog"),
    }
    assert reader.files.left_out == {".png": 2}


def test_of_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", {"cat/1.png": 1, "dog/1.png": 2})
    with tarfile.open(path, "a") as tar:
        add(tar, "./cat/1.png", png(9))
        add(tar, "dog/2.png", type=tarfile.SYMTYPE, linkname="1.png")
        add(tar, "dog/2.png", png(7))
        add(tar, "dog/1.png", type=tarfile.SYMTYPE, linkname="../cat/1.png")
    assert content(TarReader(path)) == {"cat/1.png": (9, "cat"), "dog/1.png": (9, "dog"), "dog/2.png": (7, "dog")}


# The cache


def test_a_second_start_lists_nothing_and_reads_the_same(tmp_path: Path, listed: list[Any]) -> None:
    path = write_tar(tmp_path / "set.tar", NAMES)
    first = TarReader(path, tmp_path / "cache")
    assert len(listed) == 1
    listed.clear()
    second = TarReader(path, tmp_path / "cache")
    assert listed == []
    assert samples(second) == samples(first)
    assert (second.class_to_idx, second.filenames()) == (first.class_to_idx, first.filenames())


def test_a_tar_that_has_just_been_written_is_listed_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", NAMES)
    TarReader(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


CHANGES = {
    "the labels": {"cat/1.png": 2, "dog/1.png": 1},
    "the names": {"pig/1.png": 1, "owl/1.png": 2},
    "more": {"cat/1.png": 1, "dog/1.png": 2, "dog/2.png": 2},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", ["alone", "in a folder", "in a tar"])
def test_a_tar_that_was_replaced_is_read_anew(change: str, place: str, tmp_path: Path, listed: list[Any]) -> None:
    """Sizes agree, for a tar is padded to 10 kB."""
    cache, path = tmp_path / "cache", tmp_path / "set" / "all.tar"
    path.parent.mkdir()

    def write(names: dict[str, int]) -> TarReader:
        write_tar(path, names)
        if place == "in a tar":
            path.rename(tmp_path / "inner.tar")
            with tarfile.open(path, "w") as tar:
                tar.add(tmp_path / "inner.tar", "inner.tar")
        return TarReader(path.parent if place == "in a folder" else path, cache)

    write({"cat/1.png": 1, "dog/1.png": 2})
    changed = write(CHANGES[change])
    assert {(color, name) for color, name in content(changed).values()} == {
        (color, name.split("/")[0]) for name, color in CHANGES[change].items()
    }


def test_a_tar_of_the_same_size_and_times_is_told_by_its_headers(
    tmp_path: Path, listed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_index, "_stamp", lambda tar: (os.path.getsize(tar), 0, 0))  # a file system without times
    path = write_tar(tmp_path / "set.tar", {"cat/1.png": 1, "dog/1.png": 2})
    TarReader(path, tmp_path / "cache")
    size = path.stat().st_size
    write_tar(path, {"pig/1.png": 1, "owl/1.png": 2})
    assert path.stat().st_size == size
    assert list(TarReader(path, tmp_path / "cache").class_to_idx) == ["owl", "pig"]
    assert len(listed) == 2
    assert list(TarReader(path, tmp_path / "cache").class_to_idx) == ["owl", "pig"]
    assert len(listed) == 2


def test_the_first_and_further_headers_of_a_large_tar_are_compared(
    tmp_path: Path, listed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_index, "_stamp", lambda tar: (os.path.getsize(tar), 0, 0))
    monkeypatch.setattr(tar_index, "_HEADERS", 4)
    names = [f"cat/{number:02}.png" for number in range(20)]
    for number in (0, 5, 15):
        path = write_tar(tmp_path / f"{number}.tar", names)
        assert list(TarReader(path, tmp_path / "cache").class_to_idx) == ["cat"]
        write_tar(path, [*names[:number], "dog/x0.png", *names[number + 1 :]])
        assert list(TarReader(path, tmp_path / "cache").class_to_idx) == ["cat", "dog"]


def test_a_header_that_is_not_compared_is_told_by_the_times(
    tmp_path: Path, listed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_index, "_HEADERS", 1)
    path = write_tar(tmp_path / "set.tar", ["cat/0.png", "cat/1.png", "cat/2.png"])
    TarReader(path, tmp_path / "cache")
    write_tar(path, ["cat/0.png", "dog/1.png", "cat/2.png"])
    assert list(TarReader(path, tmp_path / "cache").class_to_idx) == ["cat", "dog"]


def test_a_tar_that_appears_in_a_folder_is_noticed(tmp_path: Path, listed: list[Any]) -> None:
    root, cache = tmp_path / "set", tmp_path / "cache"
    root.mkdir()
    write_tar(root / "cat.tar", ["1.png"])
    assert list(TarReader(root, cache).class_to_idx) == ["cat"]
    write_tar(root / "dog.tar", ["1.png"])
    (root / "._dog.tar").write_bytes(b"of macOS")
    assert list(TarReader(root, cache).class_to_idx) == ["cat", "dog"]


def test_a_pickle_of_timm_is_neither_read_nor_written(tmp_path: Path, listed: list[Any]) -> None:
    root = tmp_path / "set"
    root.mkdir()
    path = write_tar(root / "set.tar", {"cat/1.png": 1, "dog/1.png": 2})
    ReaderImageInTar(str(path), cache_tarinfo=True)
    (root / "_set_set_tarinfos.pickle").write_bytes(pickle.dumps({"tartrees": []}))
    assert (root / "_set_tarinfos.pickle").exists()
    write_tar(path, {"owl/1.png": 1, "pig/1.png": 2})
    before = contents(root)
    assert list(TarReader(path, tmp_path / "cache").class_to_idx) == ["owl", "pig"]
    assert list(TarReader(root, tmp_path / "cache").class_to_idx) == ["owl", "pig"]
    assert contents(root) == before
    for file in (tmp_path / "cache").iterdir():
        with np.load(io.BytesIO(file.read_bytes()[32:]), allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)


def test_a_damaged_cache_file_is_made_again(tmp_path: Path, listed: list[Any]) -> None:
    path = write_tar(tmp_path / "set.tar", NAMES)
    expected = samples(TarReader(path, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        file.write_bytes(damaged)
        listed.clear()
        assert samples(TarReader(path, tmp_path / "cache")) == expected
        assert len(listed) == 1


def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path: Path, listed: list[Any]) -> None:
    path = write_tar(tmp_path / "set.tar", NAMES)
    assert len(TarReader(path, path)) == 7


# Reading


def test_workers_and_copies_read_the_right_images(tmp_path: Path) -> None:
    names = {f"c{number % 3}/{number}.png": number for number in range(60)}
    reader = TarReader(write_tar(tmp_path / "set.tar", names))
    expected = samples(reader)  # the tar is open from here on
    assert samples(pickle.loads(pickle.dumps(reader))) == expected

    class Bytes(Dataset):
        def __getitem__(self, index: int) -> tuple[bytes, int]:
            file, label = reader[index]
            with file:
                return file.read(), label

        def __len__(self) -> int:
            return 60

    loader = DataLoader(Bytes(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [tuple(sample) for sample in loader] == expected


def test_a_tar_that_was_cut_while_it_is_read_is_an_error_of_its_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", ["a/1.png", "b/1.png"])
    reader = TarReader(path)
    os.truncate(path, 540)
    with refused(OSError, str(path), "ends before the end of 'a/1.png'"):
        reader[0]


def test_broken_tars_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", NAMES)
    whole = path.read_bytes()
    for content in (
        whole[:600],
        whole[:1100],
        whole[:2048] + b"\0" * 100,
        b"",
        b"no tar" * 300,
        whole[:512] + b"x" * 4000,
    ):
        path.write_bytes(content)
        with refused(ValueError, "Expected a complete tar, but got", str(path), "Copy or make it again"):
            open_tar(path)
    path.write_bytes(whole[:5120])  # whole files without the end, as some programs write it
    assert len(open_tar(path)) == 5
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing"):
        with refused(FileNotFoundError, "Expected a tar or a folder of tars, but got", str(path), "Correct the path."):
            TarReader(path)
    with refused(FileNotFoundError, "Expected a tar with images", "which holds no images. Correct the path."):
        TarReader(write_tar(tmp_path / "empty.tar", []))

"""The index of a folder: timm's samples and labels, and nothing old or damaged is ever taken for them."""

import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from refusal import contents, refused
from timm.data import ImageDataset
from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import DataLoader

from timm_accel.data.image_files import image_endings
from timm_accel.data.readers import folder_index
from timm_accel.data.readers.folder_index import FolderReader

WATCHERS: list[Callable[[str], None]] = []


def _tell(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.scandir" and isinstance(arguments[0], str):  # shutil.rmtree lists a descriptor
        for watcher in WATCHERS:
            watcher(arguments[0])


sys.addaudithook(_tell)  # cannot be removed; it does nothing without watchers


@pytest.fixture(autouse=True)
def _timm_reads_what_pillow_reads() -> Any:
    """Let timm find the same endings, so that everything else can be compared."""
    before = get_img_extensions()
    set_img_extensions(sorted(image_endings()))
    yield
    set_img_extensions(before)


@pytest.fixture
def listed() -> Any:
    """The folders that were listed since the test last cleared this."""
    folders: list[str] = []
    WATCHERS.append(folders.append)
    yield folders
    WATCHERS.clear()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change counts as old after 50 ms, so that the tests need not wait for two seconds each time."""
    monkeypatch.setattr(folder_index, "_SETTLED_NS", 50_000_000)


def settle() -> None:
    time.sleep(0.07)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes of four files, settled when `soon` is in use."""
    root = tmp_path / "tree"
    touch(*(root / name / f"{number}.jpg" for name in ("cat", "dog", "owl") for number in range(4)))
    settle()
    return root


def samples(reader: FolderReader) -> list[tuple[str, int]]:
    return [(reader.path(index), int(reader.labels[index])) for index in range(len(reader))]


def agrees_with_timm(reader: FolderReader) -> bool:
    reader.name_by_path(())  # as timm, which makes folders of one name one class
    timms = ReaderImageFolder(str(reader.root))
    assert samples(reader) == timms.samples
    assert list(reader.class_to_idx.items()) == list(timms.class_to_idx.items())
    for options in ({}, {"basename": True}, {"absolute": True}, {"basename": True, "absolute": True}):
        assert reader.filenames(**options) == timms.filenames(**options)
    return True


def write_odd_tree(root: Path) -> None:
    """Whatever makes order and labels hard: mixed case, numbers, nesting, equal leaves, links, strange names."""
    leaves = ["class 1", "class 10", "class 2", "Class 3", "a-b", "a", "ä", "ΑΣ", "cat.png", "deep/a", "deep/er/x9"]
    names = ["1.png", "01.png", "001.PNG", "10.jpg", "9.JPEG", "A.jpg", "a.jpg", "a-b.jpg", "²x.jpg", "x٣.jpg", "Σ.png"]
    others = ["readme.txt", ".png", "image", "image.jpg.part", "image.webp", "x.gif"]
    for leaf in leaves:
        touch(*(root / leaf / name for name in names + others))
    for folder in ("x/01", "X/1", "x/1", "X/01"):  # equal in natural order: the order of the listing decides
        touch(*(root / folder / "a0" / name for name in names))
    touch(root / "stray.png", root / "deep" / "between.png", root / "empty" / "notes.txt")
    touch(Path(os.fsdecode(os.fsencode(root / "a") + b"/not\xffutf8.jpg")))
    (root / "line\nbreak").mkdir()
    touch(root / "line\nbreak" / "a\tb.jpg")
    outside = root.parent / "outside"
    touch(outside / "far" / "1.png", outside / "2.png")
    (root / "linked").symlink_to(outside)
    (root / "a" / "linked.png").symlink_to(outside / "2.png")
    (root / "a" / "broken.png").symlink_to(outside / "missing.png")
    (root / "a" / "folder").symlink_to(root / "deep")
    (root / "broken").symlink_to(outside / "missing")
    (root / "itself").symlink_to(root / "itself")


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../tree", "relative", "path"])
def test_samples_labels_and_names_are_those_of_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str, soon: None, listed: list[str]
) -> None:
    root = tmp_path / "tree"
    write_odd_tree(root)
    settle()
    monkeypatch.chdir(tmp_path)
    given = "tree" if spelling == "relative" else spelling.format(root)
    given = root if spelling == "path" else given
    assert agrees_with_timm(FolderReader(given, tmp_path / "cache"))
    listed.clear()
    again = FolderReader(given, tmp_path / "cache")
    assert listed == []
    assert agrees_with_timm(again)


def test_a_folder_that_cannot_be_listed_is_passed_over_as_timm_does_and_nothing_is_kept(
    tmp_path: Path, soon: None
) -> None:
    root = tmp_path / "tree"
    write_odd_tree(root)
    name = "n" * 200
    descriptor = os.open(root, os.O_RDONLY)
    folder = root
    try:  # a path longer than the system takes
        while len(str(folder)) < 4200:
            os.mkdir(name, dir_fd=descriptor)
            below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor, folder = below, folder / name
    finally:
        os.close(descriptor)
    settle()
    assert agrees_with_timm(FolderReader(root, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_random_trees_agree_with_timm(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    parts = ["a", "B", "7", "07", "12", "-", " ", "_", ".", "é"]
    for number in range(15):
        root = tmp_path / str(number)
        for _ in range(60):
            depth = draws.integers(0, 4)
            folders = ["y" + "".join(draws.choice(parts, draws.integers(1, 4))) + "x" for _ in range(depth)]
            leaf = f"leaf{draws.integers(12)}"  # no two are equal in natural order: timm's labels would be random
            name = "".join(draws.choice(parts, draws.integers(1, 5))) + draws.choice([".png", ".JPG", ".txt"])
            touch(root.joinpath(*folders, leaf, "z" + name))
        assert agrees_with_timm(FolderReader(root, tmp_path / "cache"))


def test_classes_that_are_equal_in_natural_order_are_numbered_the_same_each_time(tmp_path: Path) -> None:
    for name in ("1", "01", "a", "A", "001"):
        touch(tmp_path / "tree" / name / "1.png")
    reader = FolderReader(tmp_path / "tree", tmp_path / "cache")
    assert reader.class_to_idx == {"001": 0, "01": 1, "1": 2, "A": 3, "a": 4}


def test_labels_and_sizes_of_classes_are_counted(tmp_path: Path) -> None:
    for name, count in {"b": 3, "a10": 1, "a9": 2}.items():
        touch(*(tmp_path / "tree" / name / f"{number}.png" for number in range(count)))
    reader = FolderReader(tmp_path / "tree", tmp_path / "cache")
    assert np.issubdtype(reader.labels.dtype, np.integer)
    assert reader.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert reader.class_sizes == {"a9": 2, "a10": 1, "b": 3}
    assert list(reader.class_sizes) == list(reader.class_to_idx)


def test_indices_are_those_of_a_list(tree: Path, tmp_path: Path) -> None:
    reader = FolderReader(tree, tmp_path / "cache")
    assert reader.path(-1) == reader.path(11) == str(tree / "owl" / "3.jpg")
    assert reader.path(np.int64(1)) == str(tree / "cat" / "1.jpg")
    for index in (12, -13):
        with pytest.raises(IndexError):
            reader[index]
        with pytest.raises(IndexError):
            reader.path(index)


def test_timms_dataset_reads_through_it_with_and_without_workers(tmp_path: Path) -> None:
    root = write_images(tmp_path / "tree", {"cat": 4, "dog": 3, "owl": 2})
    reader = FolderReader(root, tmp_path / "cache")
    file, label = reader[5]
    with file:
        assert (file.read(), label) == ((root / "dog" / "001.png").read_bytes(), 1)
    assert type(label) is int
    ours, timms = (ImageDataset(root, reader=reader), ImageDataset(str(root)))
    expected = [(image.tobytes(), label) for image, label in timms]
    assert [(image.tobytes(), label) for image, label in ours] == expected
    loader = DataLoader(ours, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [(image.tobytes(), label) for image, label in loader] == expected


def test_a_copy_by_pickle_has_the_same_samples(tree: Path, tmp_path: Path) -> None:
    reader = FolderReader(tree, tmp_path / "cache")
    copy = pickle.loads(pickle.dumps(reader))
    assert samples(copy) == samples(reader)
    assert copy.class_to_idx == reader.class_to_idx


def test_a_second_start_lists_nothing_and_writes_nothing(
    tree: Path, tmp_path: Path, soon: None, listed: list[str]
) -> None:
    first = FolderReader(tree, tmp_path / "cache")
    assert len(listed) == 4
    kept = [(file, file.stat().st_ino) for file in (tmp_path / "cache").iterdir()]
    assert len(kept) == 1
    listed.clear()
    second = FolderReader(tree, str(tmp_path / "cache"))
    assert listed == []
    assert kept == [(file, file.stat().st_ino) for file in (tmp_path / "cache").iterdir()]
    assert samples(second) == samples(first)


def test_one_index_serves_every_spelling_of_the_root(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soon: None, listed: list[str]
) -> None:
    FolderReader(tree, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    listed.clear()
    assert FolderReader("tree", tmp_path / "cache").path(0) == "tree/cat/0.jpg"
    assert FolderReader(f"{tree}/", tmp_path / "cache").path(0) == str(tree / "cat" / "0.jpg")
    assert listed == []


def test_the_users_cache_directory_is_the_default(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    FolderReader(tree)
    assert len(list((tmp_path / "user" / "timm_accel" / "folder_index").iterdir())) == 1


def test_a_change_in_place_is_not_noticed_and_need_not_be(
    tree: Path, tmp_path: Path, soon: None, listed: list[str]
) -> None:
    FolderReader(tree, tmp_path / "cache")
    (tree / "cat" / "1.jpg").write_bytes(b"new")
    listed.clear()
    file, _ = FolderReader(tree, tmp_path / "cache")[1]
    with file:
        assert file.read() == b"new"
    assert listed == []


CHANGES = {
    "a file added": lambda root: touch(root / "cat" / "new.jpg"),
    "a file removed": lambda root: (root / "dog" / "1.jpg").unlink(),
    "a file renamed": lambda root: (root / "owl" / "1.jpg").rename(root / "owl" / "9.jpg"),
    "a file replaced by another name's": lambda root: (root / "owl" / "1.jpg").replace(root / "owl" / "2.jpg"),
    "a file moved": lambda root: (root / "owl" / "1.jpg").rename(root / "cat" / "9.jpg"),
    "a class added": lambda root: touch(root / "bee" / "1.jpg"),
    "an empty class filled": lambda root: touch(root / "none" / "1.jpg"),
    "a class removed": lambda root: shutil.rmtree(root / "cat"),
    "a class renamed": lambda root: (root / "cat").rename(root / "zebra"),
    "two classes swapped": lambda root: [
        (root / old).rename(root / new) for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog"))
    ],
    "a nested folder added": lambda root: touch(root / "cat" / "more" / "1.jpg"),
    "a file added to a nested folder": lambda root: touch(root / "deep" / "er" / "2.jpg"),
    "a file added behind a link": lambda root: touch(root.parent / "outside" / "new.jpg"),
    "a link set to another folder": lambda root: [
        (root / "linked").unlink(),
        (root / "linked").symlink_to(root.parent / "other"),
    ],
    "a link broken": lambda root: (root.parent / "outside").rename(root.parent / "gone"),
    "a broken link fixed": lambda root: touch(root.parent / "missing" / "1.jpg"),
    "the root replaced": lambda root: [shutil.move(root, root.parent / "old"), touch(root / "b" / "1.jpg")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(tree: Path, tmp_path: Path, change: str, soon: None, listed: list[str]) -> None:
    touch(tree / "deep" / "er" / "1.jpg", tmp_path / "outside" / "1.jpg", tmp_path / "other" / "2.jpg")
    touch(tree / "dog" / "one more.jpg")
    (tree / "none").mkdir()
    (tree / "linked").symlink_to(tmp_path / "outside")
    (tree / "later").symlink_to(tmp_path / "missing")
    settle()
    before = samples(FolderReader(tree, tmp_path / "cache"))
    CHANGES[change](tree)
    settle()
    changed = FolderReader(tree, tmp_path / "cache")
    assert samples(changed) != before
    assert agrees_with_timm(changed)
    listed.clear()
    assert samples(FolderReader(tree, tmp_path / "cache")) == samples(changed)
    assert listed == []


def test_a_change_is_noticed_though_the_time_of_modification_was_set_back(
    tree: Path, tmp_path: Path, soon: None
) -> None:
    FolderReader(tree, tmp_path / "cache")
    status = (tree / "cat").stat()
    touch(tree / "cat" / "unpacked.jpg")
    os.utime(tree / "cat", ns=(status.st_atime_ns, status.st_mtime_ns))  # as tar does
    assert agrees_with_timm(FolderReader(tree, tmp_path / "cache"))


def test_an_index_of_a_folder_that_has_just_changed_is_not_kept(tree: Path, tmp_path: Path, listed: list[str]) -> None:
    """Without `soon`: two seconds, as git does, since some file systems tell no shorter times apart."""
    cache = tmp_path / "cache"
    for number in range(3):
        listed.clear()
        assert agrees_with_timm(FolderReader(tree, cache))
        assert len(listed) == 8  # ours and timm's
        assert not cache.exists()
        touch(tree / "cat" / f"more{number}.jpg")
    time.sleep(1.5)
    FolderReader(tree, cache)
    assert not cache.exists()
    time.sleep(0.6)
    FolderReader(tree, cache)
    assert len(list(cache.iterdir())) == 1
    listed.clear()
    assert len(FolderReader(tree, cache)) == 15
    assert listed == []


def test_a_change_while_the_tree_is_listed_is_noticed_at_the_next_start(tree: Path, tmp_path: Path, soon: None) -> None:
    done = []

    def add_to_what_was_listed(path: str) -> None:
        if path.endswith("owl") and not done:
            done.append(listed_last[-1])
            touch(Path(done[0]) / "late.jpg")
        listed_last.append(path)

    listed_last: list[str] = []
    WATCHERS.append(add_to_what_was_listed)
    try:
        first = FolderReader(tree, tmp_path / "cache")
    finally:
        WATCHERS.clear()
    if not done or Path(done[0]) == tree:  # the file system lists "owl" first
        pytest.skip("nothing was listed before")
    assert len(first) == 12
    settle()
    second = FolderReader(tree, tmp_path / "cache")
    assert len(second) == 13
    assert agrees_with_timm(second)


def test_a_plugin_of_pillow_rebuilds_the_index(
    tree: Path, tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tree / "cat" / "1.heic")
    settle()
    assert len(FolderReader(tree, tmp_path / "cache")) == 12
    with monkeypatch.context() as patch:  # as pillow_heif.register_heif_opener() does
        patch.setitem(Image.OPEN, "HEIF", (object, None))
        patch.setitem(Image.EXTENSION, ".heic", "HEIF")
        assert FolderReader(tree, tmp_path / "cache").files.used == {".jpg": 12, ".heic": 1}
    assert len(FolderReader(tree, tmp_path / "cache")) == 12


def test_a_cache_file_that_is_damaged_anywhere_is_rebuilt(
    tree: Path, tmp_path: Path, soon: None, listed: list[str]
) -> None:
    expected = samples(FolderReader(tree, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 97)]
    truncated = [whole[:length] for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1)]
    foreign = [whole + b"\0", b"\x80\x05N." * 20, b"PK\x03\x04" + whole, os.urandom(len(whole)), b"\0" * len(whole)]
    for content in flipped + truncated + foreign:
        file.write_bytes(content)
        listed.clear()
        assert samples(FolderReader(tree, tmp_path / "cache")) == expected
        assert len(listed) == 4
        listed.clear()
        FolderReader(tree, tmp_path / "cache")  # whole again; zip keeps the time, so that the bytes differ
        assert listed == []


def test_the_index_of_another_root_is_not_taken(tmp_path: Path, soon: None) -> None:
    for name in ("one", "two"):
        touch(tmp_path / name / "cat" / f"{name}.jpg")
    settle()
    FolderReader(tmp_path / "one", tmp_path / "cache")
    (first,) = (tmp_path / "cache").iterdir()
    FolderReader(tmp_path / "two", tmp_path / "cache")
    (second,) = set((tmp_path / "cache").iterdir()) - {first}
    shutil.copy(first, second)
    shutil.rmtree(tmp_path / "two")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "cat" / "one.jpg").rename(tmp_path / "two" / "cat" / "new.jpg")
    assert agrees_with_timm(FolderReader(tmp_path / "two", tmp_path / "cache"))


def test_many_at_once_do_no_harm(tree: Path, tmp_path: Path, soon: None) -> None:
    barrier = threading.Barrier(8)

    def start() -> list[tuple[str, int]]:
        barrier.wait()
        return samples(FolderReader(tree, tmp_path / "cache"))

    with ThreadPoolExecutor(8) as pool:
        found = [job.result() for job in [pool.submit(start) for _ in range(8)]]
    assert found == [ReaderImageFolder(str(tree)).samples] * 8
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing unfinished is left


def test_a_cache_folder_that_cannot_be_written_is_no_error(tree: Path, tmp_path: Path, soon: None) -> None:
    (tmp_path / "file").write_text("mine")
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        assert agrees_with_timm(FolderReader(tree, cache))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_the_place_of_the_cache_file_is_no_error(tree: Path, tmp_path: Path, soon: None) -> None:
    FolderReader(tree, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.unlink()
    file.mkdir()
    assert agrees_with_timm(FolderReader(tree, tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == [file]


def test_a_root_that_is_missing_or_a_file_is_refused(tree: Path, tmp_path: Path, soon: None) -> None:
    for root in (tmp_path / "missing", tree / "cat" / "1.jpg", ""):
        with refused(FileNotFoundError, "Expected a folder with one folder of images", repr(str(root)), "not a folder"):
            FolderReader(root, tmp_path / "cache")
    FolderReader(tree, tmp_path / "cache")
    shutil.rmtree(tree)
    with refused(FileNotFoundError, "which is not a folder. Correct the path."):
        FolderReader(tree, tmp_path / "cache")


def test_a_root_without_images_is_refused_until_there_are_some(tmp_path: Path, soon: None) -> None:
    root, cache = tmp_path / "tree", tmp_path / "cache"
    (root / "cat").mkdir(parents=True)
    settle()
    for _ in range(2):
        with refused(FileNotFoundError, "Expected a folder with one folder", repr(str(root)), "holds no images."):
            FolderReader(root, cache)
    assert not cache.exists()
    touch(root / "cat" / "1.jpg")
    assert len(FolderReader(root, cache)) == 1


def test_a_loop_of_links_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "cat" / "loop").symlink_to(tree)
    with refused(ValueError, "Expected no loop of links", repr(str(tree / "cat" / "loop")), repr(f"{tree}/"), "Remove"):
        FolderReader(tree, tmp_path / "cache")
    (tree / "cat" / "loop").unlink()
    touch(tmp_path / "other" / "1.jpg")
    (tmp_path / "other" / "back").symlink_to(tree)  # by way of a folder outside
    (tree / "cat" / "out").symlink_to(tmp_path / "other")
    with refused(ValueError, "Expected no loop of links", repr(str(tree / "cat" / "out" / "back"))):
        FolderReader(tree, tmp_path / "cache")


def test_the_folder_is_left_as_it_was(tree: Path, tmp_path: Path, soon: None) -> None:
    before = contents(tree)
    FolderReader(tree, tmp_path / "cache")
    assert contents(tree) == before

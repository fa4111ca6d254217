"""What is an image by its name, what a system left behind, and that every count of files is told."""

import io
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from PIL import Image, ImageFile
from refusal import refused
from timm.data.readers.img_extensions import get_img_extensions

from timm_accel.data import FilenameReader, FolderReader, ImageFolderDataset, LabeledImages, Source, create_datasets
from timm_accel.data.image_files import FileCounts, empty_folders, image_endings, is_leftover, list_images
from timm_accel.data.readers.tar_reader import TarReader
from timm_accel.predict.images import find_images

LEFTOVERS = [
    ".DS_Store",
    "._0.png",
    ".ipynb_checkpoints/0-checkpoint.png",
    ".Trash-1000/files/0.png",
    ".thumbnails/0.png",
    "@eaDir/0.png/SYNOFILE_THUMB_M.jpg",
    "@__thumb/s1000.jpg",
    "#recycle/0.png",
    "$RECYCLE.BIN/$R1.png",
    "__MACOSX/cat/0.png",
    "lost+found/0.png",
    "LOST.DIR/0.png",
    "System Volume Information/0.png",
    "Thumbs.db",
    "desktop.ini",
    "Icon\r",
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def mixed(root: Path) -> Path:
    """Two classes of images in several formats, with leftovers at every depth and other files."""
    write_images(root, {"cat": 4, "dog": 4})
    for number, ending in enumerate((".webp", ".gif", ".tiff", ".bmp", ".jfif", ".TIF")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "cat" / f"x{number}{ending}")
    touch(root, *LEFTOVERS, *(f"dog/{name}" for name in LEFTOVERS), *(f"dog/more/{name}" for name in LEFTOVERS))
    touch(root, "readme.txt", "cat/notes.txt", "cat/a.heic", "dog/clip.MP4", "dog/none", "only/text.txt")
    return root


COUNTS = FileCounts(
    {".png": 8, ".bmp": 1, ".gif": 1, ".jfif": 1, ".tif": 1, ".tiff": 1, ".webp": 1},
    {".txt": 3, "": 1, ".heic": 1, ".mp4": 1},
    3 * len(LEFTOVERS),
)
LINE = (
    "14 images (8 .png, 1 .bmp, 1 .gif, 1 .jfif, 1 .tif, …); left out: 6 files (3 .txt, 1 without an ending, 1 .heic, "
    "1 .mp4) of which .heic needs the package pillow-heif and its register_heif_opener(), 48 system leftovers"
)


# Names


def test_the_endings_are_the_raster_formats_that_pillow_opens() -> None:
    endings = image_endings()
    assert endings >= {
        *get_img_extensions(),
        ".webp",
        ".gif",
        ".tif",
        ".tiff",
        ".bmp",
        ".jfif",
        ".apng",
        ".mpo",
        ".jp2",
    }
    assert endings >= {".psd", ".tga", ".ppm", ".ico", ".pcx", ".sgi", ".dds", ".fits"}
    assert not endings & {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf", ""}
    assert not endings & {".txt", ".heic", ".svg", ".json", ".palm"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Pillow 13 will drop the format IM
def test_every_format_that_pillow_saves_and_that_counts_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    saved = {}
    for ending in sorted(image_endings()):
        for mode in ("RGB", "L", "1", "P"):
            try:
                Image.new(mode, (16, 16)).save(tmp_path / "a" / f"0{ending}")
            except (OSError, ValueError, KeyError):
                continue
            saved[ending] = mode
            break
        else:
            (tmp_path / "a" / f"0{ending}").unlink(missing_ok=True)
    assert len(saved) > 30
    dataset = ImageFolderDataset(tmp_path)
    assert len(dataset) == len(saved)
    for index in range(len(dataset)):
        assert dataset[index][0].mode == "RGB"


def test_a_plugin_counts_unless_it_only_identifies_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    class Identified(ImageFile.StubImageFile):
        pass

    class Decoded(ImageFile.ImageFile):
        pass

    for name, factory in (("STUB", Identified), ("REAL", Decoded)):
        monkeypatch.setitem(Image.OPEN, name, (factory, None))
        monkeypatch.setitem(Image.EXTENSION, f".{name.lower()}", name)
    assert image_endings() & {".stub", ".real"} == {".real"}


@pytest.mark.parametrize(
    "name", [*sorted({name.split("/")[0] for name in LEFTOVERS}), "THUMBS.DB", "@EADIR", ".x", "@Recycle"]
)
def test_a_leftover_is_known_by_its_name_in_any_case(name: str) -> None:
    assert is_leftover(name)


@pytest.mark.parametrize("name", ["thumbs.png", "eaDir", "recycle", "a.DS_Store", "MACOSX", "@home", "#1", "_", "lost"])
def test_an_ordinary_name_is_no_leftover(name: str) -> None:
    assert not is_leftover(name)


# Counts


def test_every_reader_uses_and_counts_the_same_files(tmp_path: Path) -> None:
    root = mixed(tmp_path / "set")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(root, ".")
    readers = {
        "folder": FolderReader(root, tmp_path / "cache"),
        "names": FilenameReader(root, "^(.)"),
        "tar": TarReader(tmp_path / "set.tar", tmp_path / "cache"),
    }
    expected = readers["folder"].filenames()
    assert len(expected) == 14
    for reader in readers.values():
        assert sorted(reader.filenames()) == sorted(expected)
        assert (reader.files.used, reader.files.left_out) == (COUNTS.used, COUNTS.left_out)
        assert reader.files.leftovers == COUNTS.leftovers
    assert readers["folder"].class_to_idx == readers["tar"].class_to_idx == {"cat": 0, "dog": 1}
    assert readers["folder"].files.empty_folders == ("only",)
    assert [str(path.relative_to(root)) for path in find_images(root)] == expected


def test_a_count_is_one_line_with_the_five_most_frequent_endings() -> None:
    assert str(COUNTS) == LINE
    assert str(FileCounts.of(["a.png"], [])) == "1 image (1 .png)"
    assert str(FileCounts.of([], [], 1)) == "0 images; left out: 1 system leftover"
    endings = [f"x.{letter}" for letter in "abcdef"]
    assert "(1 .a, 1 .b, 1 .c, 1 .d, 1 .e, …)" in str(FileCounts.of(endings, []))
    assert str(FileCounts.of([], ["a.b\nc", "a.\udcff"])) == "0 images; left out: 2 files (1 .b\\nc, 1 .\\udcff)"


def test_folders_without_images_are_named_where_a_class_could_be() -> None:
    folders = ["", "cat", "cat/deep", "cat/none", "dog", "dog/red", "dog/none", "none", "none/below"]
    assert empty_folders(folders, ["cat", "cat/deep", "dog/red"]) == ["dog/none", "none"]
    assert empty_folders(["", "a"], [""]) == []


def test_an_index_from_the_cache_has_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm_accel.data.readers.folder_index._SETTLED_NS", -(10**18))
    monkeypatch.setattr("timm_accel.data.readers.tar_index._SETTLED_NS", -(10**18))
    root = mixed(tmp_path / "set")
    touch(root, os.fsdecode(b"cat/a.\xff\xfe"))
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(root, ".")
    for open_reader, path in ((FolderReader, root), (TarReader, tmp_path / "set.tar")):
        first = open_reader(path, tmp_path / open_reader.__name__)
        assert len(list((tmp_path / open_reader.__name__).iterdir())) == 1
        second = open_reader(path, tmp_path / open_reader.__name__)
        assert second.files == first.files
        assert second.files.left_out["." + os.fsdecode(b"\xff\xfe")] == 1


def test_a_root_below_a_leftover_is_read(tmp_path: Path) -> None:
    root = write_images(tmp_path / ".hidden" / "@eaDir" / ".set", {"cat": 2, "dog": 2})
    assert FolderReader(root).files == FileCounts({".png": 4}, {})
    assert len(find_images(root)) == 4


def test_a_run_tells_in_one_line_for_each_split_what_it_uses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed(tmp_path / "set" / "train")
    write_images(tmp_path / "set" / "val", {"cat": 2, "dog": 2})
    with caplog.at_level(logging.INFO):
        create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=tmp_path / "set")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"train: {LINE}; no image in 'only'."),
        ("INFO", "val: 4 images (4 .png)."),
    ]


def test_a_set_that_is_divided_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path / "set", {"cat": 4, "dog": 4})
    touch(root, "cat/Thumbs.db")
    create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=Source(root))
    assert caplog.messages == ["data: 8 images (8 .png); left out: 1 system leftover."]


def test_only_rank_0_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=mixed(tmp_path / "set"))
    assert caplog.messages == []


def test_a_folder_to_predict_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_images(mixed(tmp_path / "set"))
    assert caplog.messages == [f"{str(tmp_path / 'set')!r}: {LINE}."]


def test_a_folder_whose_files_are_all_left_out_says_that(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/1.heic", "set/a/2.HEIC", "set/b/1.txt", "set/b/.DS_Store")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "set", "set")
    words = "all of whose files are left out: 3 files (2 .heic, 1 .txt) of which .heic needs the package pillow-heif"
    for read in (FolderReader, lambda root: FilenameReader(root, "(.)"), find_images, Source(tmp_path / "set").open):
        with refused(FileNotFoundError, "Expected", tmp_path / "set", words, "1 system leftover. Correct", "convert"):
            read("train" if getattr(read, "__name__", "") == "open" else tmp_path / "set")
    with refused(FileNotFoundError, "Expected a tar with images", words):
        TarReader(tmp_path / "set.tar")


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", {"cat": 1, "dog": 1})
    (root / "cat" / "back").symlink_to(root)
    (root / "dog" / "cat").symlink_to(root / "cat")
    paths, counts = list_images(root)
    assert paths == ["cat/000.png", "dog/000.png", "dog/cat/000.png"]
    assert counts.used == {".png": 3}


# Animations


def frames(ending: str) -> bytes:
    file = io.BytesIO()
    images = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    images[0].save(
        file, ending, save_all=True, append_images=images[1:], **({"lossless": True} if ending == "WEBP" else {})
    )
    return file.getvalue()


@pytest.mark.parametrize(("kind", "ending"), [("GIF", "gif"), ("WEBP", "webp"), ("PNG", "apng"), ("TIFF", "tiff")])
def test_an_animation_gives_its_first_frame(kind: str, ending: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"0.{ending}").write_bytes(frames(kind))
    image: Any = ImageFolderDataset(tmp_path)[0][0]
    assert np.asarray(image).reshape(-1, 3).max(0).tolist() == pytest.approx([250, 0, 0], abs=4)


# Classes of one name


def nested(root: Path, *folders: str) -> Path:
    for number, folder in enumerate(folders):
        write_images(root / folder, {"x": 2})
        for file in (root / folder / "x").iterdir():
            file.rename(root / folder / f"{number}{file.name}")
        (root / folder / "x").rmdir()
    return root


def test_folders_of_one_name_are_classes_by_their_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = nested(tmp_path / "set", "apartment/outdoor", "church/outdoor", "kitchen")
    reader = FolderReader(root, tmp_path / "cache")
    assert reader.class_sizes == {"apartment/outdoor": 2, "church/outdoor": 2, "kitchen": 2}
    assert [reader.filename(i) for i in np.flatnonzero(reader.labels == 1)] == [
        "church/outdoor/1000.png",
        "church/outdoor/1001.png",
    ]
    create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=root)
    assert caplog.messages == ["data: 6 images (6 .png); classes named by path, since folders share a name: 'outdoor'."]


def test_a_split_that_lacks_one_of_two_classes_of_a_name_has_the_same_names(tmp_path: Path) -> None:
    nested(tmp_path / "train", "a/outdoor", "b/outdoor", "c")
    nested(tmp_path / "val", "a/outdoor", "c")
    nested(tmp_path / "test", "c")
    source = Source(tmp_path)
    assert list(source.open("val").class_to_idx) == ["a/outdoor", "c"]
    assert list(source.open("train").class_to_idx) == ["a/outdoor", "b/outdoor", "c"]
    folders = {"train": tmp_path / "train", "val": tmp_path / "val"}
    for paths in ({"data": source}, {"data": folders}, {f"{name}_path": path for name, path in folders.items()}):
        with refused(ValueError, "Expected the same classes", "lacks ['b/outdoor']"):
            create_datasets(8, (0.5,) * 3, (0.5,) * 3, **paths)
    nested(tmp_path / "val", "b/outdoor")
    train_set, val_set = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=tmp_path)
    assert train_set.class_names == val_set.class_names == ["a/outdoor", "b/outdoor", "c"]


def test_a_name_that_repeats_in_evaluation_alone_is_a_path_in_training_too(tmp_path: Path) -> None:
    nested(tmp_path / "train", "a/outdoor", "c")
    nested(tmp_path / "val", "a/outdoor", "c")
    nested(tmp_path / "test", "a/outdoor", "b/outdoor", "c")
    train_set, val_set = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=tmp_path)
    assert train_set.class_names == val_set.class_names == ["a/outdoor", "c"]


def test_classes_that_lie_deeper_in_one_split_keep_their_names(tmp_path: Path) -> None:
    nested(tmp_path / "train", "site1/cat", "site1/dog")
    nested(tmp_path / "val", "site2/cat", "site2/dog")
    train_set, val_set = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=tmp_path)
    assert train_set.class_names == val_set.class_names == ["cat", "dog"]


def test_a_tar_names_classes_as_its_folder_does(tmp_path: Path) -> None:
    for split in ("train", "val"):
        nested(tmp_path / "set" / split, "a/outdoor", "b/outdoor", "c")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "set", "set")
    names = [Source(tmp_path / name).open("val").class_to_idx for name in ("set", "set.tar")]
    assert names[0] == names[1] == {"a/outdoor": 0, "b/outdoor": 1, "c": 2}


def test_an_own_dataset_over_the_reader_has_the_counts(tmp_path: Path) -> None:
    assert LabeledImages(FolderReader(mixed(tmp_path / "set"))).reader.files.used == COUNTS.used

"""The audit finds each fault that was planted, and nothing else."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image, ImageFile, ImageOps
from refusal import refused
from terminals import open_terminal
from timm.data import ImageDataset
from timm.data.readers import create_reader
from timm.data.readers.reader import Reader
from tiny_runs import tiny_data

from timm_accel.audit import Audit, ReadableImage, Unreadable, audit, duplicates
from timm_accel.audit.duplicates import near_groups
from timm_accel.data import ImageFolderDataset
from timm_accel.data.image_files import FileCounts

SIZES = {"train/cat": 12, "train/dog": 11, "val/cat": 10, "val/dog": 10}


def look_at(data: Any, **options: Any) -> Audit:
    return audit(data, **({"num_workers": 0, "progress": False} | options))


def photo(size: tuple[int, int] = (96, 64), seed: int = 1) -> Image.Image:
    """Smooth blots of color, which look the same after resizing."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of two classes without a fault; ``train/cat`` has a photo more."""
    write_images(tmp_path / "data", SIZES)
    photo().save(tmp_path / "data" / "train" / "cat" / "photo.png")
    return tmp_path / "data"


def timms_own(folder: Path) -> dict[str, ImageDataset]:
    return {name: ImageDataset(str(folder / name)) for name in ("train", "val")}


def test_a_set_without_faults_has_no_problems(folder: Path) -> None:
    found = look_at(folder)
    assert found.problems() == []
    assert found.unreadable == found.duplicates == found.near_duplicates == ()
    assert str(found) == found.table()
    assert str(found).endswith("\n\nNo problems found.")


def test_the_numbers_of_a_split_are_those_of_its_files(folder: Path) -> None:
    Image.fromarray(np.full((20, 30), 51, dtype=np.uint8)).save(folder / "val" / "dog" / "grey.png")
    found = look_at(folder)
    assert list(found.splits) == ["train", "val"]
    train, val = found.splits["train"], found.splits["val"]
    assert (train.num_files, val.num_files) == (24, 21)
    assert train.class_sizes == {"cat": 13, "dog": 11}
    assert (train.width, train.height) == ((16, 16, 96), (16, 16, 64))
    assert (val.width, val.height) == ((16, 16, 30), (16, 16, 20))
    assert (train.modes, val.modes) == ({"RGB": 24}, {"L": 1, "RGB": 20})
    images = [np.asarray(Image.open(path).convert("RGB")) / 255 for path in (folder / "val").rglob("*.png")]
    mean = np.mean([image.mean((0, 1)) for image in images], axis=0)
    square = np.mean([(image**2).mean((0, 1)) for image in images], axis=0)
    assert val.mean == pytest.approx(mean, abs=1e-6)
    assert val.std == pytest.approx(np.sqrt(square - mean**2), abs=1e-6)
    rows = {line[:16].strip(): line[16:].split("  ") for line in str(found).splitlines()}
    assert [cell.strip() for cell in rows["modes"] if cell] == ["RGB 24", "L 1, RGB 20"]
    assert [cell.strip() for cell in rows["largest class"] if cell] == ["cat 13", "dog 11"]
    assert [cell.strip() for cell in rows["smallest class"] if cell] == ["dog 11", "cat 10"]


def unreadable_text(folder: Path) -> tuple[str, ...]:
    (folder / "val" / "dog" / "text.png").write_text("no image")
    return "val: 1 of 21 files cannot be read", "text.png", "no image of a kind that Pillow knows"


def truncated_png(folder: Path) -> tuple[str, ...]:
    path = folder / "train" / "dog" / "cut.png"
    photo(seed=2).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    return "train: 1 of 25 files cannot be read", "cut.png", "truncated"


def truncated_jpeg(folder: Path) -> tuple[str, ...]:
    path = folder / "train" / "dog" / "cut.jpg"
    photo(seed=2).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    return "train: 1 of 25 files cannot be read", "cut.jpg", "truncated"


def equal_in_one_class(folder: Path) -> tuple[str, ...]:
    photo().save(folder / "train" / "cat" / "again.png", compress_level=1)
    return "2 equal images in 1 group count more than once", "again.png", "photo.png"


def equal_in_two_classes(folder: Path) -> tuple[str, ...]:
    photo().save(folder / "train" / "dog" / "again.png")
    return "2 equal images in 1 group have different labels", "cat/photo.png", "dog/again.png"


def equal_in_two_splits(folder: Path) -> tuple[str, ...]:
    photo().save(folder / "val" / "cat" / "again.png")
    return (
        "2 equal images in 1 group are in several splits",
        "on, such as",
        "train/cat/photo.png",
        "val/cat/again.png",
    )


def equal_in_two_splits_and_classes(folder: Path) -> tuple[str, ...]:
    photo().save(folder / "val" / "dog" / "again.png")
    return "in several splits", "1 of the groups with different labels", "train/cat/photo.png", "val/dog/again.png"


def compressed(folder: Path) -> tuple[str, ...]:
    photo().save(folder / "train" / "cat" / "again.jpg", quality=40)
    return "2 near-duplicates in 1 group count more than once", "again.jpg", "photo.png"


def resized_into_another_class(folder: Path) -> tuple[str, ...]:
    photo((48, 32)).save(folder / "train" / "dog" / "small.png")
    return "2 near-duplicates in 1 group have different labels", "photo.png", "small.png"


def brightened_into_another_split(folder: Path) -> tuple[str, ...]:
    photo().point(lambda level: level * 0.9).save(folder / "val" / "cat" / "dark.png")
    return "2 near-duplicates in 1 group are in several splits", "may measure", "photo.png", "dark.png"


def class_that_evaluation_lacks(folder: Path) -> tuple[str, ...]:
    for number in range(10):
        path = folder / "train" / "owl" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        photo(seed=10 + number).save(path)
    return "val: lacks owl, so that its labels are not those of train.", ""


def class_that_training_lacks(folder: Path) -> tuple[str, ...]:
    class_that_evaluation_lacks(folder)
    (folder / "train" / "owl").rename(folder / "val" / "owl")
    return "val: has owl besides", ""


def empty_class(folder: Path) -> tuple[str, ...]:
    (folder / "val" / "owl").mkdir()
    (folder / "val" / "owl" / "notes.txt").write_text("none yet")
    return "val: owl holds no readable image.", ""


def other_endings(folder: Path) -> tuple[str, ...]:
    (folder / "train" / "cat" / "one.CR2").write_text("raw")
    (folder / "train" / "cat" / "two.heic").write_text("of a phone")
    (folder / "train" / "notes.txt").write_text("no image")
    return "train: 2 files are ignored for their extension (.cr2 1, .heic 1)", ""


def tiny_class(folder: Path) -> tuple[str, ...]:
    (folder / "val" / "dog" / "000.png").unlink()
    return "val: 1 class of fewer than 10 images: dog 9.", ""


def imbalance(folder: Path) -> tuple[str, ...]:
    for number in range(98):
        photo((8, 8), seed=100 + number).save(folder / "train" / "cat" / f"more_{number}.png")
    (folder / "train" / "dog" / "010.png").unlink()
    return "train: cat has 11 times as many images as dog, 111 to 10.", ""


FAULTS = [
    *(unreadable_text, truncated_png, truncated_jpeg),
    *(equal_in_one_class, equal_in_two_classes, equal_in_two_splits, equal_in_two_splits_and_classes),
    *(compressed, resized_into_another_class, brightened_into_another_split),
    *(class_that_evaluation_lacks, class_that_training_lacks, empty_class, other_endings, tiny_class, imbalance),
]


@pytest.mark.parametrize("plant", FAULTS)
def test_a_fault_is_found_and_nothing_else(plant: Callable[[Path], tuple[str, ...]], folder: Path) -> None:
    words = plant(folder)
    found = look_at(folder)
    assert len(found.problems()) == 1, found.problems()
    (sentence,) = found.problems()
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith(".")
    assert f"1. {sentence}" in str(found)
    assert len(found.unreadable) + len(found.duplicates) + len(found.near_duplicates) <= 1


def test_the_example_of_a_group_shows_what_is_wrong_with_it(folder: Path) -> None:
    photo().save(folder / "train" / "cat" / "again.png")
    photo().save(folder / "train" / "dog" / "again.png")
    (sentence,) = look_at({"train": ImageFolderDataset(folder / "train")}).problems()
    assert sentence.startswith("3 equal images in 1 group have different labels, of which one at most is right, such")
    assert "train/cat/again.png" in sentence
    assert "train/dog/again.png" in sentence
    photo().save(folder / "val" / "cat" / "again.png")
    (sentence,) = look_at(folder).problems()
    assert "train/cat/again.png" in sentence
    assert "val/cat/again.png" in sentence


def test_splits_that_number_their_classes_otherwise_are_found(folder: Path) -> None:
    reader = create_reader("", root=str(folder / "val"), class_map={"dog": 0, "cat": 1})
    splits = {"train": ImageFolderDataset(folder / "train"), "val": ImageDataset("", reader=reader)}
    assert look_at(splits).problems() == ["val: numbers its classes differently from train."]


def test_long_lists_are_cut(folder: Path) -> None:
    for number in range(7):
        (folder / "train" / f"c{number}").mkdir()
        photo(seed=30 + number).save(folder / "train" / f"c{number}" / "one.png")
    lacks, tiny, imbalance = look_at(folder).problems()
    assert imbalance == "train: cat has 13 times as many images as c0, 13 to 1."
    assert lacks.startswith("val: lacks c0, c1, c2, c3, c4 and 2 more, so")
    assert tiny == "train: 7 classes of fewer than 10 images: c0 1, c1 1, c2 1, c3 1, c4 1 and 2 more."


def test_faults_come_worst_first(folder: Path) -> None:
    planted = [unreadable_text, class_that_evaluation_lacks, equal_in_two_splits, resized_into_another_class]
    firsts = [plant(folder)[0].split(": ")[-1] for plant in [*planted, other_endings, tiny_class]]
    firsts[0], firsts[3] = (
        "cannot be read",
        "3 near-duplicates in 1 group are in several splits",
    )  # one of them is equal
    problems = look_at(folder).problems()
    assert len(problems) == len(firsts)
    for first, sentence in zip(firsts, problems, strict=True):
        assert first in sentence


def test_groups_tell_split_class_and_path_of_each_image(folder: Path) -> None:
    photo().save(folder / "val" / "dog" / "again.png")
    photo().save(folder / "train" / "cat" / "near.jpg", quality=40)
    found = look_at(folder)
    near, original, again = (
        ReadableImage("train", "cat", str(folder / "train" / "cat" / "near.jpg")),
        ReadableImage("train", "cat", str(folder / "train" / "cat" / "photo.png")),
        ReadableImage("val", "dog", str(folder / "val" / "dog" / "again.png")),
    )
    assert found.duplicates == ((original, again),)
    assert found.near_duplicates == ((near, original, again),)


def test_mirrored_and_cropped_images_are_not_found(folder: Path) -> None:
    ImageOps.mirror(photo()).save(folder / "train" / "cat" / "mirrored.png")
    photo().crop((12, 8, 96, 64)).save(folder / "train" / "cat" / "cropped.png")
    assert look_at(folder).near_duplicates == ()


def test_blank_images_are_equal_or_nothing(folder: Path) -> None:
    for number, level in enumerate((0, 0, 90, 255)):
        Image.new("RGB", (20, 20), (level,) * 3).save(folder / "train" / "cat" / f"blank_{number}.png")
    found = look_at(folder)
    assert [[Path(picture.path).name for picture in group] for group in found.duplicates] == [
        ["blank_0.png", "blank_1.png"]
    ]
    assert found.near_duplicates == ()


def test_images_of_other_shape_are_not_equal(folder: Path) -> None:
    for width, height in ((10, 40), (40, 10)):
        Image.new("RGB", (width, height)).save(folder / "train" / "cat" / f"blank_{width}.png")
    assert look_at(folder).duplicates == ()


@pytest.mark.parametrize("plant", [truncated_jpeg, truncated_png])
def test_truncated_files_are_found_where_pillow_is_told_to_fill_them(
    plant: Callable[[Path], tuple[str, ...]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(folder)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    found = look_at(folder)
    assert [(file.split, Path(file.path).stem) for file in found.unreadable] == [("train", "cut")]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_file_that_cannot_be_opened_is_unreadable(folder: Path) -> None:
    train = ImageFolderDataset(folder / "train")
    path = folder / "train" / "cat" / "photo.png"
    path.unlink()
    (file,) = look_at({"train": train}).unreadable
    assert file == Unreadable("train", str(path), f"[Errno 2] No such file or directory: {str(path)!r}")


def test_images_turned_by_exif_are_a_fault_where_the_dataset_ignores_it(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(seed=2).save(folder / "train" / "cat" / "turned.jpg", exif=exif)
    photo(seed=3).save(folder / "train" / "cat" / "upright.jpg", exif=Image.Exif())
    ours, theirs = look_at(folder), look_at(timms_own(folder))
    assert ours.splits["train"].num_turned == theirs.splits["train"].num_turned == 1
    assert ours.splits["train"].height[2] == 96  # upright
    assert ours.problems() == []
    (sentence,) = theirs.problems()
    assert sentence.startswith("train: 1 image lie")


def test_wide_images_are_a_fault_where_the_dataset_clips_them(folder: Path) -> None:
    pixels = np.random.default_rng(3).integers(300, 65536, (16, 16)).astype(np.uint16)
    Image.fromarray(pixels).save(folder / "train" / "cat" / "wide.png")
    Image.fromarray(pixels[::-1]).save(folder / "train" / "cat" / "other.png")  # white both, for timm
    ours, theirs = look_at(folder), look_at(timms_own(folder))
    assert ours.splits["train"].modes == theirs.splits["train"].modes == {"I;16": 2, "RGB": 24}
    assert ours.problems() == []
    assert ours.duplicates == theirs.duplicates == ()
    (sentence,) = theirs.problems()
    assert sentence.startswith("train: 2 images of mode I;16 turn white")
    assert np.asarray(Image.open(folder / "train" / "cat" / "wide.png").convert("RGB")).min() == 255


def test_every_mode_is_counted(folder: Path) -> None:
    for number, mode in enumerate(("1", "L", "LA", "P", "RGBA", "CMYK")):
        kind = "jpg" if mode == "CMYK" else "png"
        photo(seed=20 + number).convert(mode).save(folder / "val" / "cat" / f"{mode}.{kind}")
    found = look_at(folder)
    assert found.splits["val"].modes == {"1": 1, "CMYK": 1, "L": 1, "LA": 1, "P": 1, "RGB": 20, "RGBA": 1}
    assert found.problems() == []


def test_colors_are_compared_with_the_models(folder: Path) -> None:
    split = look_at(folder).splits["train"]
    same = {"mean": split.mean, "std": split.std}
    assert look_at(folder, model_config=same).problems() == []
    shifted = {
        "mean": tuple(mean + 0.6 * std for mean, std in zip(split.mean, split.std, strict=True)),
        "std": split.std,
    }
    wider = {"mean": split.mean, "std": tuple(2.1 * std for std in split.std)}
    narrower = {"mean": split.mean, "std": tuple(std / 2.1 for std in split.std)}
    for model_config in (shifted, wider, narrower):
        (sentence,) = look_at(folder, model_config=model_config).problems()
        numbers = ", ".join(f"{number:.2f}" for number in split.mean)
        assert sentence.startswith(f"train: mean ({numbers}) and std (")
    found = look_at(folder, model_config={"mean": [0.5], "std": [0.25]})
    assert (found.model_mean, found.model_std) == ((0.5,) * 3, (0.25,) * 3)


def test_the_number_of_workers_changes_nothing(folder: Path) -> None:
    for plant in (unreadable_text, equal_in_two_splits, compressed, other_endings):
        plant(folder)
    state = torch.get_rng_state()
    none, one, two = (look_at(folder, num_workers=workers) for workers in (0, 1, 2))
    assert len(none.problems()) == 4
    assert none == one == two
    assert none.to_json() == one.to_json() == two.to_json()
    assert look_at(folder, num_workers=None) == none
    assert torch.equal(torch.get_rng_state(), state)


def test_json_holds_everything_and_is_written_where_told(folder: Path, tmp_path: Path) -> None:
    equal_in_two_splits(folder)
    found = look_at(folder)
    content = json.loads(found.to_json(tmp_path / "audit.json"))
    assert json.loads((tmp_path / "audit.json").read_text()) == content
    assert content["problems"] == found.problems()
    assert [picture["split"] for picture in content["duplicates"][0]] == ["train", "val"]
    assert content["splits"]["train"]["class_sizes"] == {"cat": 13, "dog": 11}


def test_a_folder_of_classes_is_one_split(folder: Path) -> None:
    found = look_at(folder / "train")
    assert list(found.splits) == ["train"]
    assert found.splits["train"].class_sizes == {"cat": 13, "dog": 11}
    (folder / "train" / "cat").rename(folder / "train" / "test")  # a class of this name holds images, no folders
    assert look_at(str(folder / "train")).splits["train"].class_sizes == {"dog": 11, "test": 13}


def test_files_are_counted_by_ending_and_what_is_left_out_too(folder: Path) -> None:
    for name in ("@eaDir", ".ipynb_checkpoints"):
        (folder / "val" / "dog" / name).mkdir()
        photo().save(folder / "val" / "dog" / name / "0.png")
    photo(seed=3).save(folder / "val" / "dog" / "one.webp")
    (folder / "val" / "dog" / "notes.txt").write_text("no image")
    found = look_at(folder)
    assert found.splits["val"].files == FileCounts({".png": 20, ".webp": 1}, {".txt": 1}, 2)
    assert found.splits["train"].files == FileCounts({".png": 24}, {})
    rows = {line[:16].strip(): line[16:].strip() for line in str(found).splitlines()}
    assert rows["by ending"].split("  ")[-1].strip() == "20 .png, 1 .webp"
    assert rows["left out"].startswith("nothing")
    assert rows["left out"].endswith("1 file (1 .txt), 2 system leftovers")
    assert json.loads(found.to_json())["splits"]["val"]["files"]["left_out"] == {".txt": 1}
    assert found.problems() == []

    dataset = ImageDataset(str(folder / "val"))  # timm reads what is in the leftovers, and no .webp
    found = look_at({"val": dataset})
    assert found.splits["val"].files.left_out == {".txt": 1, ".webp": 1}
    assert "val: 1 file is ignored for its extension (.webp 1): convert it to PNG or JPEG." in found.problems()


def test_workers_open_tar_files_themselves(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        archive.add(folder / "train", "train")
    dataset = ImageDataset("", reader=create_reader("", root=str(tmp_path / "train.tar")))
    dataset.reader[0][0].read()  # from here on an open file, with a position that workers would share
    shared = dataset.reader.tar_state.tf.fileobj.fileno()
    position = os.lseek(shared, 0, os.SEEK_CUR)
    found = look_at({"train": dataset}, num_workers=2)
    assert os.lseek(shared, 0, os.SEEK_CUR) == position
    assert found.problems() == []
    assert found.splits["train"].class_sizes == {"0": 13, "1": 11}  # timm's tar reader gives no names


class InMemory(Reader):
    """Bytes instead of files, each multi-label, with or without a label."""

    class_to_idx = {"cat": 0, "dog": 1, "owl": 2}  # noqa: RUF012

    def __getitem__(self, index: int) -> tuple[bytes, list[int] | None]:
        file = io.BytesIO()
        photo(seed=index).save(file, "PNG")
        return file.getvalue(), None if index == 20 else [0, 1]

    def __len__(self) -> int:
        return 21

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(index)


def test_an_image_of_several_classes_counts_in_each() -> None:
    found = look_at({"all": ImageDataset("", reader=InMemory())})
    assert found.splits["all"].class_sizes == {"cat": 20, "dog": 20, "owl": 0}
    assert found.problems() == ["all: owl holds no readable image."]


@pytest.mark.parametrize("pairs_at_a_time", [1, 1000, 2**22])
def test_buckets_find_what_all_pairs_find(pairs_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_PAIRS_AT_A_TIME", pairs_at_a_time)
    random = np.random.default_rng(0)
    codes = [int(code) << 16 for code in random.integers(0, 2**47, 60)]  # all share their last part
    for code in codes[:30]:  # up to 4 flipped bits, anywhere
        bits = random.choice(64, random.integers(1, 5), replace=False)
        codes.append(code ^ sum(1 << int(bit) for bit in bits))
    expected = [[i, j] for i in range(90) for j in range(i + 1, 90) if (codes[i] ^ codes[j]).bit_count() <= 3]
    assert len(expected) > 15
    assert near_groups(codes, [bytes(range(256))] * 90, []) == expected
    assert near_groups(codes, [random.bytes(256) for _ in codes], []) == []


def test_images_that_pillow_warns_of_are_readable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # the photo has 6,144: a DecompressionBombWarning
    assert look_at(folder).unreadable == ()


def test_the_bar_is_shown_in_a_terminal_unless_told_otherwise(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(folder, progress=True)
    assert capsys.readouterr() == ("", "")
    terminal = open_terminal(monkeypatch)
    look_at(folder)
    assert terminal.getvalue() == ""
    look_at(folder, progress=True)
    shown = terminal.getvalue()
    assert "audit of train" in shown
    assert "24/24" in shown


def test_bad_input_has_its_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused(FileNotFoundError, "one folder of images for each class", "nowhere", "not a folder"):
        look_at(tmp_path / "nowhere")
    with refused(FileNotFoundError, "one folder of images for each class", "empty", "no images"):
        look_at(tmp_path / "empty")
    with refused(ValueError, "Expected data to hold a dataset", "none"):
        look_at({})
    with refused(TypeError, "Expected data to be a folder, or datasets", "TensorDataset", "'train'"):
        look_at(tiny_data())
    with refused(TypeError, "a reader of files", "'val', a TensorDataset"):
        look_at({"train": ImageFolderDataset(folder / "train"), "val": tiny_data()})
    for num_workers in (-1, 1.5):
        with refused(ValueError, "Expected num_workers", repr(num_workers)):
            look_at(folder, num_workers=num_workers)
    for model_config in ({}, {"mean": (0.5,) * 3}, {"mean": 0.5, "std": 0.5}, {"mean": (0.5,) * 2, "std": (1,) * 2}, 3):
        with refused(ValueError, "Expected model_config to have a mean and a std", model_config):
            look_at(folder, model_config=model_config)


def test_an_empty_dataset_is_refused() -> None:
    class Empty(InMemory):
        def __len__(self) -> int:
            return 0

    with refused(ValueError, "Expected every dataset to hold images", "'val'"):
        look_at({"val": ImageDataset("", reader=Empty())})


def test_the_import_is_cheap() -> None:
    code = "import sys, timm_accel.audit; print([name for name in ('torch', 'timm', 'tqdm') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_map_of_manifests_and_folders_is_audited(image_folder: Path, tmp_path: Path) -> None:
    rows = [f"train/cat/{number:03d}.png,cat" for number in range(3)] + ["train/dog/000.png,dog"]
    for name in ("train", "val"):
        (image_folder / f"{name}.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    mapping = {name: str(image_folder / f"{name}.csv") for name in ("train", "val")}
    found = audit(mapping, num_workers=0, progress=False)
    assert list(found.splits) == ["train", "val"]
    assert [split.class_sizes for split in found.splits.values()] == [{"cat": 3, "dog": 1}] * 2
    assert len(found.duplicates) == 4
    folders = audit({"train": image_folder / "train", "val": image_folder / "val"}, num_workers=0, progress=False)
    assert [split.num_files for split in folders.splits.values()] == [19, 9]


@pytest.mark.parametrize("name", ["Café", "Ångström", "Šibenik"])
def test_both_forms_of_a_letter_are_one_class_as_in_training(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / "train", {normalize("NFC", name): 12, name[0] + "zz": 11, "zoo": 11})
    write_images(tmp_path / "val", {normalize("NFD", name): 10, name[0] + "zz": 10, "zoo": 10}, size=20)
    found = look_at(tmp_path)
    assert found.problems() == []
    assert list(found.splits["train"].class_sizes) == list(found.splits["val"].class_sizes)
    assert found.splits["val"].class_sizes[normalize("NFC", name)] == 10


def test_two_splits_with_many_kinds_of_files_fit_into_80_columns(folder: Path) -> None:
    for split in ("train", "val"):
        for ending in ("txt", "heic", "cr2", "mp4", "pdf", "svg", "zip"):
            (folder / split / "cat" / f"a.{ending}").touch()
        (folder / split / "@eaDir").mkdir()
        for number, mode in enumerate(("L", "P", "CMYK", "1", "LA", "RGBA")):
            photo(seed=10 * len(split) + number).convert(mode).save(folder / split / "dog" / f"{mode}.tiff")
    table = look_at(folder).table().split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "of which .heic" in " ".join(table.split())
    assert [line.split("  ")[0] for line in table.splitlines() if line[0] != " "] == [
        "files", "by ending", "left out", "classes", "largest class", "smallest class", "width", "height", "modes",
        "turned by EXIF", "mean", "std",
    ]  # fmt: skip

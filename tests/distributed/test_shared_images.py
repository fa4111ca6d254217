"""1, 2 and 3 processes share the images of predictions and evaluations: the same bits, each image once, no hang."""

import io
import json
import shutil
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_images
from ranks import launch
from tiny_runs import differences

from timm_accel.models import create_classifier, save_classifier

CLASSES = ["cat", "dog", "owl"]
BROKEN = b"no image"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 readable images and a broken one, in a folder, a tar, a multi-label manifest and two shards."""
    root = tmp_path_factory.mktemp("shares")
    write_images(root / "data/train", {"cat": 1, "dog": 1, "owl": 1}, size=32)
    val = write_images(root / "data/val", {"cat": 4, "dog": 4, "owl": 3}, size=32)
    write_images(root / "data_unsplit", {"cat": 4, "dog": 4, "owl": 4}, size=32)
    (val / "dog/002b.png").write_bytes(BROKEN)
    shutil.copy(val / "owl/000.png", val / "cat/004.png")  # a wrong label, so that there is a temperature
    files = sorted(val.rglob("*.png"))
    (root / "data_tar").mkdir()
    with tarfile.open(root / "data_tar/val.tar", "w") as tar:
        tar.add(val, "val")
    rows = [
        f"{file.relative_to(root)},{file.parent.name};{CLASSES[number % 3]},val" for number, file in enumerate(files)
    ]
    (root / "data.csv").write_text("\n".join(["path,label,split", *rows]))
    (root / "wds").mkdir()
    for number in range(2):
        with tarfile.open(root / f"wds/val-{number}.tar", "w") as tar:
            for file in files[number::2]:
                add(tar, f"{file.parent.name}{file.stem}.png", file.read_bytes())
                add(tar, f"{file.parent.name}{file.stem}.cls", str(CLASSES.index(file.parent.name)).encode())
    torch.manual_seed(0)
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    save_classifier(model, root / "model", CLASSES)
    save_classifier(model, root / "multi_label", CLASSES, multi_label=True)
    for count in (1, 2, 3):
        shutil.copytree(root / "model", root / f"model{count}")
    return launch(Path(__file__).with_name("shares_worker.py"), [1, 2, 3], root)


def results(folder: Path, count: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{count}_{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return results(folder, 1)[0]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return results(folder, request.param)


def test_all_processes_have_the_bits_of_one(alone: Any, ranks: Any) -> None:
    assert len(alone["same"]) > 15
    for rank in ranks:
        assert differences(rank["same"], alone["same"]) == []


def test_the_results_are_complete_and_in_order(alone: Any, folder: Path) -> None:
    files = sorted(map(str, (folder / "data/val").rglob("*.png")))
    readable = [file for file in files if not file.endswith("002b.png")]
    found = alone["same"]
    assert [path for path, *_ in found["predict a folder"]] == files
    assert [path for path, *_, error in found["predict a folder"] if error] == [str(folder / "data/val/dog/002b.png")]
    assert len(found["predict one image"]), len(found["predict a generator"]) == (1, 5)
    assert found["predict no image"] == []
    for name in ("folder 0", "folder 2", "views"):
        assert found[name][0] == readable
    assert [len(found[name][1]) for name in ("tar 0", "stream 0", "stream 2", "multi-label")] == [12] * 4
    assert [len(found[name][3]) for name in ("tar 0", "stream 0", "stream 2", "multi-label")] == [1] * 4
    assert found["multi-label"][1].shape == (12, 3)


@pytest.mark.parametrize("work", ["predicted", "scored"])
def test_each_image_is_read_by_one_process(alone: Any, ranks: Any, work: str) -> None:
    shares = [rank[work] for rank in ranks]
    assert sorted(chain.from_iterable(shares)) == sorted(alone[work])
    assert len({*alone[work]}) == len(alone[work]) == 13
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 2  # one batch


def test_one_process_may_evaluate_alone(alone: Any, ranks: Any) -> None:
    assert [rank["alone"] for rank in ranks] == [{}] * (len(ranks) - 1) + [alone["same"]["metrics"]]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("no model", "which does not exist"),
        ("no data", "which is not a folder"),
        ("no images to predict", "which does not exist"),
        ("a strange error", "RuntimeError: this and that"),
        ("outputs", "ValueError: Expected"),
        ("predicted outputs", "ValueError: Expected"),
        ("other data", "Expected the same images on all processes"),
        ("a class of errors", "RuntimeError: this and that"),
    ],
)
def test_an_error_on_one_process_is_told_by_all(ranks: Any, fault: str, told: str) -> None:
    assert told in ranks[0]["errors"][fault]
    assert {rank["errors"][fault] for rank in ranks} == {ranks[0]["errors"][fault]}


def test_files_that_one_process_cannot_read_are_left_out_on_all(ranks: Any) -> None:
    count, unreadable = ranks[0]["unreadable here"]
    assert all(rank["unreadable here"] == [count, unreadable] for rank in ranks)
    assert count == 13 - len(unreadable)
    own = {path.rpartition("/")[2] for path in ranks[-1]["scored"]}
    assert {*unreadable} == own | {"002b.png"}


@pytest.mark.parametrize("work", ["to evaluate", "in a tar", "of a manifest", "to train"])
def test_one_process_of_a_host_lists_the_images(ranks: Any, work: str) -> None:
    first, *others = [rank["listings"][work] for rank in ranks]
    assert first > 0
    assert others == [0] * len(others)


def test_rank_0_audits_alone(ranks: Any, folder: Path) -> None:
    (listed, printed), *others = [
        json.loads((folder / f"audit_{len(ranks)}_{rank}.json").read_text()) for rank in range(len(ranks))
    ]
    assert listed > 0
    assert printed == json.loads((folder / "audit_1_0.json").read_text())[1] != ""
    assert others == [[0, ""]] * len(others)


def test_what_cannot_be_copied_is_made_by_each_process(ranks: Any) -> None:
    assert [rank["unpicklable"] for rank in ranks] == [*range(len(ranks))]


def test_the_temperature_is_written_once_for_all(alone: Any, ranks: Any) -> None:
    assert {rank["temperature"] for rank in ranks} == {alone["temperature"]} == {alone["same"]["temperature"]}


def test_rank_0_prints_and_writes_what_the_command_finds(ranks: Any, folder: Path) -> None:
    printed = [(folder / f"printed_{len(ranks)}_{rank}.txt").read_text() for rank in range(len(ranks))]
    assert printed[0] == (folder / "printed_1_0.txt").read_text()
    assert "images" in printed[0]
    assert printed[1:] == ["1\n"] * (len(ranks) - 1)  # the code for an unreadable image
    written = [json.loads((folder / f"evaluation{count}.json").read_text()) for count in (1, len(ranks))]
    assert written[0] == written[1]

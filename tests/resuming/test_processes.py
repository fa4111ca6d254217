"""Distributed runs: cut and resumed to the same bits, interrupted together, continued by another number of ranks."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Program, run
from ranks import on_ranks
from resumed_runs import Augmented, make_run, states, train

from timm_accel.states.folder import state_folders

WORKER = Path(__file__).parent / "resuming_worker.py"
ROOT = str(Path(__file__).parents[2])
ENV = os.environ | {
    "ACCELERATE_USE_CPU": "true",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": ROOT,
}


def launch(processes: int, names: str, folder: Path, *more: str) -> tuple[list[dict[str, Any]], Any]:
    folder.mkdir(exist_ok=True)
    result = run(on_ranks([processes if processes > 1 else 0], WORKER, names, folder, *more), env=ENV)
    files = [folder / f"results_{processes}_{rank}.pt" for rank in range(processes)]
    assert all(file.exists() for file in files), result.stderr[-4000:]
    return [torch.load(file, weights_only=True) for file in files], result


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(root: Path) -> tuple[list[dict[str, Any]], Any]:
    return launch(2, "any_cut,request_of_one,lock,full_disk,kept_for_others,signal_to_one", root / "two")


@pytest.mark.parametrize("name", ["reduce", "none", "workers"])
def test_a_run_on_two_processes_cut_at_any_update_ends_in_the_same_bits(two, name: str) -> None:
    for rank in two[0]:
        differences, images, count = rank[f"cut/{name}"]
        assert differences == [None] * 4
        assert images == [True] * 4  # each rank continues with its images, one by one
        assert count == 2 * (4 + 1)


def test_a_state_that_one_process_asks_for_is_written_at_the_next_sync_point(two) -> None:
    for rank in two[0]:
        assert rank["request"] == ["000001_epoch_0_batch_5"]


def test_what_rank_0_refuses_ends_both(two) -> None:
    for rank in two[0]:
        assert "hold no run yet" in rank["taken"]


def test_a_full_disk_is_reported_once_and_both_continue(two) -> None:
    ranks, result = two
    assert [rank["full"] for rank in ranks] == [(7, 0), (7, 0)]
    assert result.stdout.count("No space left on device") == 8  # one line for each update and the epoch's end


def test_what_a_write_on_rank_0_does_not_expect_is_raised_on_both(two) -> None:
    assert [rank["broken"] for rank in two[0]] == ["none left"] * 2


def test_sigterm_to_one_process_of_two_saves_and_ends_both(two, root: Path) -> None:
    _, result = two
    (folder,) = states(root / "two" / "signal")
    assert folder.name == "000001_epoch_0_batch_4"  # asked for in the third, agreed after the fourth
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_processes"] == 2
    assert {"rank_0.pt", "rank_1.pt"} <= set(manifest["files"])
    assert result.stdout.count("Received SIGTERM.") == 1
    assert result.stdout.count("Interrupted; the state is") == 1
    assert result.returncode != 0
    assert "ended with exit code 75" in result.stderr  # the second may be ended on its way out


def test_an_exception_on_one_process_ends_both_and_writes_nothing_more(root: Path) -> None:
    folder = root / "failing"
    folder.mkdir()
    result = run(on_ranks([2], WORKER, "exception_on_one", folder), env=ENV)
    assert result.returncode != 0
    assert [state.name.split("_", 1)[1] for state in states(folder / "exception")] == [
        "epoch_0_batch_1",
        "epoch_0_batch_2",
    ]
    assert "a bug of the user's" in result.stderr
    assert not list((folder / "exception" / "state").glob("*.unfinished"))


def test_sums_over_three_processes_are_rounded_as_before_the_cut(root: Path) -> None:
    ranks, _ = launch(3, "dummy_step", root / "three")
    for rank in ranks:
        assert rank["dummy step"] is None
        assert rank["images with a dummy step"] == (4, 2 + 1)  # one batch in the dummy step


@pytest.fixture(scope="module")
def kept(two, root: Path) -> Path:
    """Runs of two processes, cut within the first epoch and at its end."""
    folder = root / "kept"
    for name, left in (("within", 3), ("boundary", 9)):
        shutil.copytree(root / "two" / "other", folder / name)
        for state in states(folder / name)[left:]:
            shutil.rmtree(state)
    return folder


@pytest.fixture(scope="module")
def one(kept: Path, root: Path) -> dict[str, Any]:
    """The same continued by one process, and an uninterrupted run of one."""
    (results,), _ = launch(1, "kept_for_others,of_others", root / "one", str(kept))
    return results


@pytest.mark.parametrize(("name", "updates"), [("within", 3), ("boundary", 8)])
def test_one_process_continues_with_the_images_and_the_schedule_of_two(
    one: dict[str, Any], name: str, updates: int, tmp_path: Path
) -> None:
    reference = train(make_run(tmp_path), train_dataset=Augmented(64), num_epochs=2, per_device_batch_size=8)
    found = one[f"of others/{name}"]
    assert found["rates"] == reference.rates[updates:]
    assert found["updates"] == 16
    assert all(torch.equal(a, b) for a, b in zip(found["images"], reference.images[updates:], strict=True))
    (warning,) = found["warnings"]
    assert "num_processes 2 before, 1 now; batch_size 4 before, 8 now" in warning
    assert "Updates and schedule are still those of the global batch size 8" in warning
    assert "dropout, Mixup and BatchNorm's statistics differ" in warning


def test_the_mean_loss_of_an_epoch_counts_the_images_of_all_former_processes(one: dict[str, Any], kept: Path) -> None:
    state = states(kept / "within")[-1]
    sums = [torch.load(state / f"rank_{rank}.pt", weights_only=True)["running_loss"] for rank in range(2)]
    assert [part["count"] for part in sums] == [12, 12]
    rest = one["of others/within"]["loss"][0]
    total = sum(float(part["total"]) for part in sums)
    assert 0 < total / 64 < rest < total / 64 + 2  # 24 of 64 images came from the state


def wait_for(condition: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


SMALL = ["--model", "test_resnet", "--image_size", "32", "--batch_size", "4", "--num_workers", "0"]
TRAIN = ["-m", "timm_accel", "train"]


def start(*arguments: str, cwd: Path) -> Program:
    with open(cwd / "log.txt", "w") as log:
        return Program(arguments, cwd=cwd, env=ENV, stdout=log, stderr=log)


def test_sigterm_to_torchrun_saves_and_ends_all_in_time(image_folder: Path, tmp_path: Path) -> None:
    options = ["--data_dir", str(image_folder), *SMALL, "--num_epochs", "100000"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher = start(*torchrun, *TRAIN, *options, cwd=tmp_path)
    folder = tmp_path / "runs/train"
    try:
        wait_for(lambda: len(state_folders(folder / "state")) >= 2)
        os.kill(launcher.pid, signal.SIGTERM)
        began = time.monotonic()
        launcher.wait(timeout=45)  # torchrun kills after 30 s
        assert time.monotonic() - began < 29
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    output = (tmp_path / "log.txt").read_text()
    assert output.count("Interrupted; the state is") == 1
    newest = state_folders(folder / "state")[0]
    assert str(Path("runs/train/state") / newest.name) in output
    assert not (folder / "lock").exists()


def test_a_launcher_that_dies_alone_leaves_the_folder_locked_by_its_child(image_folder: Path, tmp_path: Path) -> None:
    """`accelerate launch` with one process does not hand SIGTERM on."""
    accelerate = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"]
    options = ["--data_dir", str(image_folder), *SMALL, "--num_epochs", "100000", "--resume", "auto"]
    launcher = start(*accelerate, *TRAIN, *options, cwd=tmp_path)
    folder = tmp_path / "runs/train"
    child = 0
    try:
        wait_for(lambda: len(state_folders(folder / "state")) >= 1)
        child = int((folder / "lock").read_text().split()[0])
        os.kill(launcher.pid, signal.SIGTERM)
        assert launcher.wait(timeout=20) != 0
        os.kill(child, 0)  # it lives
        second = run([*TRAIN, *options], cwd=tmp_path, env=ENV)
        assert second.returncode == 1
        assert f"one run at a time in 'runs/train', but another uses it (process {child} on" in second.stderr
        assert "Traceback" not in second.stderr
        os.kill(child, signal.SIGTERM)
        wait_for(lambda: "Interrupted; the state is" in (tmp_path / "log.txt").read_text(), seconds=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)

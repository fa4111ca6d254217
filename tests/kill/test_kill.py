"""A run that is killed by SIGKILL, at any moment, and resumed, ends with the same bits as one that was not."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from kill_comparison import contents
from kill_harness import Kill, Launch, Run, kill_and_resume, write_data
from tiny_runs import differences, needs_gpu

from timm_accel.states.run_dir import lock_run_dir, unlock_run_dir

KILLS = {1: ["update", "write", "row", "start", "row", "alone"], 2: ["write", "row", "alone"]}
EPOCHS = 8  # the best weights are those of the third


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def start_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    return lambda **options: Run(tmp_path_factory.mktemp("run"), data, epochs=EPOCHS, **options)


@pytest.fixture(scope="module")
def uninterrupted(start_run: Callable[..., Run]) -> Run:
    run = start_run()
    run.finish(resume=False)
    return run


def check_kills(kills: list[Kill], kinds: list[str]) -> None:
    assert len(kills) >= len(kinds), kills
    assert {kill.kind for kill in kills} == set(kinds)
    assert any(kill.inside_a_write for kill in kills), kills


def test_a_run_killed_six_times_ends_with_the_same_bits(uninterrupted: Run, start_run: Callable[..., Run]) -> None:
    run = start_run()
    check_kills(kill_and_resume(run, KILLS[1], random.Random(1)), KILLS[1])
    assert differences(contents(uninterrupted), contents(run)) == []
    assert run.rows() == ["epoch", *map(str, range(1, EPOCHS + 1))]


@pytest.mark.gpu
@needs_gpu
def test_a_run_on_a_gpu_killed_three_times_ends_with_the_same_bits(start_run: Callable[..., Run]) -> None:
    kinds = ["update", "write", "alone"]
    whole, run = start_run(on_cpu=False), start_run(on_cpu=False)
    whole.finish(resume=False)
    check_kills(kill_and_resume(run, kinds, random.Random(3)), kinds)
    assert differences(contents(whole), contents(run)) == []
    assert run.rows() == ["epoch", *map(str, range(1, EPOCHS + 1))]


def test_a_run_of_two_processes_killed_three_times_ends_with_the_same_bits(start_run: Callable[..., Run]) -> None:
    whole, run = start_run(num_processes=2), start_run(num_processes=2)
    whole.finish(resume=False)
    check_kills(kill_and_resume(run, KILLS[2], random.Random(2)), KILLS[2])
    assert differences(contents(whole), contents(run)) == []
    assert run.rows() == ["epoch", *map(str, range(1, EPOCHS + 1))]


def test_loader_workers_that_outlive_a_killed_run_do_not_hold_its_folder(start_run: Callable[..., Run]) -> None:
    run = start_run()
    with Launch(run) as launch:
        assert launch.until(lambda: launch.updates() >= 1)
        workers = psutil.Process(launch.process.pid).children()
        launch.kill_one(random.Random(0))
        lock = lock_run_dir(run.run_dir)
        assert any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
        unlock_run_dir(lock)


def test_what_a_kill_left_half_written_is_gone_at_the_end(start_run: Callable[..., Run]) -> None:
    run = start_run()
    kills = kill_and_resume(run, ["best", "write"], random.Random(3))
    if not {"inside the best weights", "inside a write"} <= {kill.left for kill in kills}:
        pytest.fail(f"not killed where it was meant to be: {kills}")
    assert run.half_written() == []


def test_another_seed_gives_other_bits(uninterrupted: Run, start_run: Callable[..., Run]) -> None:
    other = start_run(seed=1)
    other.finish(resume=False)
    places = differences(contents(uninterrupted), contents(other))
    for part in ("/model/", "/optimizer/state/", "/components/ema_model/", "/history/metrics/", "/callbacks/"):
        assert any(place.startswith(f"/common.pt{part}") for place in places), part
    for name in ("/history.csv", "/best/model.safetensors", "/best_ema/model.safetensors"):
        assert name in places
    assert len(places) > 100


@pytest.mark.parametrize(
    "place",
    [
        ("common.pt", "model", "conv1.0.weight"),
        ("common.pt", "optimizer", "state", 0, "exp_avg"),
        ("common.pt", "optimizer", "state", 0, "lookahead_slow_buff"),
        ("common.pt", "optimizer", "param_groups", 0, "lr"),
        ("common.pt", "components", "ema_model", "module.conv1.0.weight"),
        ("common.pt", "history", "metrics", "train_loss_epoch", 7),
        ("common.pt", "callbacks", "EarlyStoppingCallback", "best"),
        ("common.pt", "callbacks", "SaveBestCallback", "best", "ema_model", "value"),
        ("common.pt", "callbacks", "CsvHistoryCallback", "seen", "accuracy"),
        ("rank_0.pt", "running_loss", "total"),
        ("num_updates",),
        ("history.csv",),
        ("best/config.json",),
        ("best_ema/model.safetensors",),
    ],
    ids=lambda place: "/".join(map(str, place)),
)
def test_one_bit_is_seen_wherever_it_differs(uninterrupted: Run, place: tuple[Any, ...]) -> None:
    kept, changed = contents(uninterrupted), contents(uninterrupted)
    assert differences(kept, changed) == []
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = flipped(inner[place[-1]])
    assert differences(kept, changed) == ["/" + "/".join(map(str, place))]


def flipped(value: Any) -> Any:
    """Return the value with its least bit changed."""
    if isinstance(value, torch.Tensor):
        bits = value.clone().reshape(-1).view(torch.uint8)
        bits[0] ^= 1
        return bits.view(value.dtype).reshape(value.shape)
    if isinstance(value, float):
        return flipped(torch.tensor(value, dtype=torch.float64)).item()
    return bytes([value[0] ^ 1]) + value[1:] if isinstance(value, bytes) else value ^ 1

"""Several hosts, for real: network namespaces with addresses and host names, one process on each."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from forked import Program
from ranks import ON_CPU, launch

from benchmarks.namespaces import INTERFACE, Network, why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

WORKER = Path(__file__).parent / "hosts_worker.py"
REFUSED = "options,versions,folders,data,clock"


def start(network: Network, host: int, names: str, folder: Path, **more: str) -> Program:
    """Start the process of one host, which prints into a file of the folder."""
    rank = {"RANK": host, "LOCAL_RANK": 0, "WORLD_SIZE": len(network.names), "LOCAL_WORLD_SIZE": 1}
    meeting = {"MASTER_ADDR": network.addresses[0], "MASTER_PORT": 29500, "GLOO_SOCKET_IFNAME": INTERFACE}
    variables = {name: str(value) for name, value in (rank | meeting).items()}
    env = os.environ | ON_CPU | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables | more
    with open(folder / f"log_{host}.txt", "w") as log:
        return Program([WORKER, folder, names, network.names[host]], env=env, stdout=log, stderr=log)


def log_of(folder: Path, host: int) -> str:
    return (folder / f"log_{host}.txt").read_text()


def end_of(programs: Sequence[Program], seconds: float = 180) -> list[int]:
    """Wait for all, and return their exit codes."""
    try:
        return [program.wait(seconds) for program in programs]
    finally:
        for program in programs:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)


def results(folder: Path, kind: str, count: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{kind}_{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def three(root: Path) -> list[dict[str, Any]]:
    with Network(3, delay=0.0005, loss=0.002) as network:
        codes = end_of([start(network, host, f"bits,{REFUSED}", root) for host in range(3)])
    assert codes == [0, 0, 0], [log_of(root, host)[-2000:] for host in range(3)]
    return results(root, "host", 3)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refusals(hosts: list[dict[str, Any]], name: str) -> str:
    """Return why the hosts refused, which is the same on all."""
    (sentence,) = {each[name] for each in hosts}
    return sentence


def test_three_hosts_give_the_bits_of_three_processes_on_one(three: Any, tmp_path: Path) -> None:
    ours = results(launch(WORKER, [3], tmp_path, "bits"), "rank", 3)
    for host, process in zip(three, ours, strict=True):
        assert all(equal(*pair) for pair in zip(host["bits"], process["bits"], strict=True))
        for accumulation in ("same/1", "same/2"):
            for name in ("model", "ema_model"):
                assert equal(host["same"][accumulation][name], process["same"][accumulation][name])
            assert host["same"][accumulation]["history"] == process["same"][accumulation]["history"]
        assert host["resumed"]


def test_other_options_are_named_with_the_host(three: Any) -> None:
    sentence = refusals(three, "options")
    assert sentence.startswith(
        "ValueError: Expected all hosts to have the options, the model and the packages of host0"
    )
    assert "got others on host2 (rank 2): num_epochs (2 instead of 1); seed (7 instead of 8). Start" in sentence
    assert "host2 (rank 2): resume_from ('auto' instead of None)." in refusals(three, "resume")
    assert "host2 (rank 2): evaluates (True instead of False)." in refusals(three, "evaluates")
    assert refusals(three, "workers") == ""


def test_other_versions_are_named_with_the_host(three: Any) -> None:
    assert "got others on host2 (rank 2): timm ('0.9' instead of '1." in refusals(three, "versions")


def test_a_host_that_does_not_share_the_run_folder_is_named(three: Any, root: Path) -> None:
    sentence = refusals(three, "unshared")
    assert sentence.startswith("FileNotFoundError: Expected one run folder that all hosts share")
    assert f"host2 (rank 2) does not find in '{root / 'home_True' / 'run'}' what host0 (rank 0) wrote there" in sentence
    assert [each["left"] for each in three] == [[]] * 3
    assert f"host2 (rank 2) does not find in '{root / 'home_True'}" in refusals(three, "missing state")


def test_a_host_that_only_reads_the_run_folder_trains(three: Any) -> None:
    assert refusals(three, "read only") == ""
    assert [each["hidden"] for each in three] == [[]] * 3


def test_other_data_are_named_with_the_host_but_copies_are_not(three: Any) -> None:
    assert refusals(three, "copies") == ""
    sentence = refusals(three, "data")
    assert sentence.startswith("ValueError: Expected the same data on all hosts, but got others on host2 (rank 2). ")
    assert "The training data differ from those of rank 0: 1 removed, such as" in sentence


def test_another_clock_is_reported_but_a_late_host_is_not(three: Any, root: Path) -> None:
    assert refusals(three, "late") == refusals(three, "ahead") == ""
    before, after = (part.replace("\n", " ") for part in log_of(root, 0).split("\nlate\n")[1].split("ahead\n"))
    assert "clock" not in before
    assert "The clock of host2 (rank 2) is 3,600 seconds ahead of that of host0 (rank 0)" in " ".join(after.split())


TORCHRUN = """
import sys
from benchmarks.namespaces import enter
enter(sys.argv[1])
from torch.distributed.run import main
sys.argv = ["torchrun", *sys.argv[2:]]
main()
"""


def torchrun(network: Network, host: int, folder: Path, *options: str) -> Program:
    """Start torchrun on one of two hosts, which prints into a file of the folder."""
    env = os.environ | ON_CPU | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": INTERFACE}
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else ranks may read addresses of before (torch 2.14)
    options = ("--nnodes", "2", "--nproc_per_node", "1", "--monitor_interval", "0.1", *options)
    words = ["-c", TORCHRUN, network.names[host], *options, WORKER, folder, "cut"]
    with open(folder / f"log_{host}.txt", "w") as log:
        return Program(words, env=env, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def whole(root: Path) -> list[dict[str, Any]]:
    """Two hosts in a run that nothing cuts, by torchrun with numbered hosts."""
    folder = root / "whole"
    folder.mkdir()
    with Network(2) as network:
        address = ["--master_addr", network.addresses[0], "--master_port", "29500"]
        programs = [torchrun(network, host, folder, "--node_rank", str(host), *address) for host in range(2)]
        assert end_of(programs) == [0, 0], log_of(folder, 0) + log_of(folder, 1)
    return results(folder, "rank", 2)


def wait_for_updates(folder: Path, count: int, programs: list[Program]) -> None:
    while not (folder / "updates").exists() or int((folder / "updates").read_text() or 0) < count:
        assert all(program.poll() is None for program in programs), log_of(folder, 0) + log_of(folder, 1)
        time.sleep(0.02)


def test_a_cut_link_ends_both_hosts_in_one_sentence_and_a_resume_ends_in_the_same_bits(
    whole: Any, tmp_path: Path
) -> None:
    with Network(2) as network:
        programs = [start(network, host, "cut", tmp_path, TIMM_ACCEL_TIMEOUT="10") for host in range(2)]
        wait_for_updates(tmp_path, 5, programs)
        network.cut(1)
        assert end_of(programs, 60) == [1, 1]
        for host in range(2):
            (line,) = [line for line in log_of(tmp_path, host).splitlines() if "socket.cpp" not in line]
            assert line.startswith(f"worker: Expected all processes of the run to answer, but rank {host} of 2 on host")
            assert "Timed out waiting 10000ms for" in line
            assert "start the same command again on all hosts, with resume_from='auto'" in line
        network.restore(1)
        assert end_of([start(network, host, "cut", tmp_path) for host in range(2)]) == [0, 0], log_of(tmp_path, 0)
    assert "Resumed from" in log_of(tmp_path, 0)
    for before, after in zip(whole, results(tmp_path, "host", 2), strict=True):
        assert equal(before["cut"], after["cut"])


def test_torchrun_restarts_both_hosts_after_a_kill_and_the_run_ends_in_the_same_bits(
    whole: Any, tmp_path: Path
) -> None:
    with Network(2) as network:
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{network.addresses[0]}:29400", "--rdzv_id", "1"]
        programs = [torchrun(network, host, tmp_path, "--max_restarts", "1", *meeting) for host in range(2)]
        wait_for_updates(tmp_path, 5, programs)
        (worker,) = psutil.Process(programs[1].pid).children()
        worker.kill()
        assert end_of(programs, 500) == [0, 0], log_of(tmp_path, 0) + log_of(tmp_path, 1)
    assert log_of(tmp_path, 0).count("Resumed from") == 1
    for before, after in zip(whole, results(tmp_path, "rank", 2), strict=True):
        assert equal(before["cut"], after["cut"])

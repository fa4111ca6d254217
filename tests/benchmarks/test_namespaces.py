"""Hosts of network namespaces: they reach each other by addresses, and what is asked of a link is so."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.namespaces import Network, sent_bytes, why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

ROOT = Path(__file__).parents[2]
LISTEN = """
import socket, sys
with socket.create_server(("", 5000)) as server:
    print("listening", flush=True)
    for number in range(int(sys.argv[1])):
        connection, address = server.accept()
        with connection:
            while connection.recv(1 << 16):
                pass
            connection.sendall(f"{socket.gethostname()} to {address[0]}".encode())
"""
ASK = """
import socket, sys, time
began = time.monotonic()
try:
    with socket.create_connection(("host0", 5000), timeout=float(sys.argv[1])) as connection:
        connection.sendall(bytes(int(sys.argv[2])))
        connection.shutdown(socket.SHUT_WR)
        print(connection.recv(100).decode(), time.monotonic() - began)
except OSError as error:
    print(type(error).__name__, 0)
"""


def listening(network: Network, times: int = 1) -> subprocess.Popen[str]:
    program = network.start(0, [sys.executable, "-S", "-c", LISTEN, times], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "listening\n"
    return program


def ask(network: Network, host: int, seconds: float = 20, num_bytes: int = 0) -> tuple[str, float]:
    """Send bytes to host 0, and return its answer, or an error, and the seconds until then."""
    words = network.command(host, [sys.executable, "-S", "-c", ASK, seconds, num_bytes])
    answer, time = subprocess.run(words, capture_output=True, text=True, check=True).stdout.rsplit(maxsplit=1)
    return answer, float(time)


def traffic(network: Network, host: int) -> list[int]:
    """Return the bytes that a host has sent and received."""
    code = "from benchmarks.namespaces import *; counters = psutil.net_io_counters(pernic=True)[INTERFACE]"
    words = network.command(host, [sys.executable, "-c", f"{code}; print(sent_bytes(), counters.bytes_recv)"])
    return [*map(int, subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout.split())]


def left_by(process: int) -> list[str]:
    """Return the hosts, the mounts and the programs that a process has made, and its file with addresses."""
    mark = f"timm-accel-{process}-"
    hosts = [*Path("/run/netns").glob(f"{mark}*"), *Path(tempfile.gettempdir()).glob(f"{mark}*")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]
    programs = [each.info["cmdline"] for each in psutil.process_iter(["cmdline"]) if mark in str(each.info["cmdline"])]
    return [*map(str, hosts), *mounts, *map(str, programs)]


@pytest.mark.parametrize("delay", [0, 0.001])
def test_three_hosts_have_addresses_and_names(delay: float) -> None:
    with Network(3, delay=delay) as network:
        listening(network, 3)
        assert [ask(network, host)[0] for host in range(3)] == [f"host0 to {each}" for each in network.addresses]


def test_two_networks_at_a_time_are_apart() -> None:
    with Network() as first, Network() as second:
        listening(first)
        assert ask(second, 1, 0.3)[0] == "ConnectionRefusedError"
        assert ask(first, 1)[0] == "host0 to 10.87.0.2"


def test_a_link_that_is_cut_and_restored() -> None:
    with Network() as network:
        listening(network)
        network.cut(1)
        assert ask(network, 1, 0.3)[0] in ("TimeoutError", "OSError")
        network.restore(1)
        assert ask(network, 1)[0] == "host0 to 10.87.0.2"


def test_each_way_has_the_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with Network(delay=0.05) as network:
        listening(network)
        answer, time = ask(network, 1)
    assert answer == "host0 to 10.87.0.2"
    assert time > 4 * 0.05  # there and back for the connection, and for the answer


@pytest.mark.parametrize("delay", [0, 0.01])
def test_a_host_sends_at_the_rate_that_was_set_last_and_counts_the_bytes(delay: float) -> None:
    num_bytes = 500_000
    with Network(delay=delay) as network:
        network.limit_rate(1)
        network.limit_rate(10)  # Mbit/s
        listening(network)
        _, time = ask(network, 1, num_bytes=num_bytes)
        assert 4 * delay + (num_bytes - 65_536) / 1.25e6 < time < 2  # all but the burst, which is sent at once
        sent, received = traffic(network, 1)
        assert num_bytes < sent < 1.1 * num_bytes  # with the headers
        assert received < 0.1 * num_bytes
        assert traffic(network, 0)[0] < 0.1 * num_bytes
    assert sent_bytes() == 0  # the link is between the hosts alone


def test_an_error_leaves_no_host_and_no_program() -> None:
    programs = []

    def use_and_fail() -> None:
        with Network(delay=0.001) as network:
            programs.append(listening(network))
            assert left_by(os.getpid()) != []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert [program.returncode for program in programs] == [-9]
    assert left_by(os.getpid()) == []


@pytest.mark.parametrize(("name", "value"), [("_MTU", 10), ("sys.executable", "false")])
def test_hosts_that_cannot_be_made_leave_nothing(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"benchmarks.namespaces.{name}", value)
    with pytest.raises(OSError, match=r"mtu|relay"):
        Network(delay=0.001)
    assert left_by(os.getpid()) == []


MOUNTS = """
import subprocess
from pathlib import Path
from benchmarks.namespaces import Network
before = Path("/proc/self/mountinfo").read_text().count(" /etc/hosts ")
with Network() as network:
    subprocess.run(network.command(1, ["true"]), check=True)
    print(Path("/proc/self/mountinfo").read_text().count(" /etc/hosts ") - before)
"""


def test_the_mounts_of_a_host_are_its_own_where_mounts_are_shared() -> None:
    words = ["unshare", "--mount", "--propagation", "shared", sys.executable, "-c", MOUNTS]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout == b"0\n"


def test_a_program_that_has_not_entered_its_host_yet_is_killed() -> None:
    with Network() as network:
        program = network.start(1, ["sleep", "60"])
    assert program.returncode == -signal.SIGKILL


def test_a_process_that_has_entered_a_host_is_killed_with_it() -> None:
    code = "import sys; from benchmarks.namespaces import enter; enter(sys.argv[1]); print('in', flush=True); input()"
    with Network() as network:
        words = [sys.executable, "-c", code, network.names[1]]
        with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"in\n"
            network.close()
            assert program.wait(20) == -signal.SIGKILL
    assert left_by(os.getpid()) == []


def test_the_hosts_of_a_killed_process_are_removed_by_the_next() -> None:
    code = "import os; from benchmarks.namespaces import Network; Network(delay=0.001); os.kill(os.getpid(), 9)"
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    killed.wait(60)
    assert left_by(killed.pid) != []
    Network().close()
    assert left_by(killed.pid) == []

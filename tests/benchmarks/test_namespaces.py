"""Hosts of network namespaces: they reach each other by addresses, and what is asked of a link is so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.namespaces import Network, why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

LISTEN = """
import socket, sys
with socket.create_server(("::" if ":" in sys.argv[1] else "", 5000), family=int(sys.argv[2])) as server:
    print("listening", flush=True)
    for number in range(int(sys.argv[3])):
        connection, address = server.accept()
        with connection:
            connection.sendall(f"{socket.gethostname()} to {address[0]}".encode())
"""
ASK = """
import socket, sys, time
began = time.monotonic()
try:
    with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[2])) as connection:
        print(connection.recv(100).decode(), time.monotonic() - began)
except OSError as error:
    print(type(error).__name__, 0)
"""


def listening(network: Network, times: int = 1) -> subprocess.Popen[str]:
    address = network.addresses[0]
    words = [sys.executable, "-S", "-c", LISTEN, address, 10 if ":" in address else 2, times]
    program = network.start(0, words, stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "listening\n"
    return program


def ask(network: Network, host: int, seconds: float = 20) -> tuple[str, float]:
    words = network.command(host, [sys.executable, "-S", "-c", ASK, "host0", seconds])
    answer, time = subprocess.run(words, capture_output=True, text=True, check=True).stdout.rsplit(maxsplit=1)
    return answer, float(time)


def limit(network: Network) -> str:
    words = network.command(1, ["tc", "qdisc", "show", "dev", "net0"])
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def hosts_of(process: int) -> list[Path]:
    return [*Path("/run/netns").glob(f"timm-accel-{process}-*")]


@pytest.mark.parametrize("ipv6", [False, True])
def test_three_hosts_have_addresses_and_names(ipv6: bool) -> None:
    with Network(3, ipv6=ipv6) as network:
        listening(network, 2)
        assert [ask(network, host)[0] for host in (1, 2)] == [f"host0 to {each}" for each in network.addresses[1:]]


def test_a_link_that_is_cut_and_restored() -> None:
    with Network() as network:
        listening(network)
        network.cut(1)
        assert ask(network, 1, 0.3)[0] in ("TimeoutError", "OSError")
        network.restore(1)
        assert ask(network, 1)[0] == "host0 to 10.87.0.2"


def test_each_way_has_the_latency() -> None:
    with Network(delay=0.05) as network:
        listening(network)
        answer, time = ask(network, 1)
    assert answer == "host0 to 10.87.0.2"
    assert time > 4 * 0.05  # there and back for the connection, and for the answer


def test_nothing_arrives_where_all_is_lost() -> None:
    with Network(loss=1) as network:
        listening(network)
        assert ask(network, 1, 0.3)[0] == "TimeoutError"


def test_a_limited_rate_is_that_of_the_interface() -> None:
    with Network(rate=100) as network:
        assert "qdisc tbf" in limit(network)
        assert "rate 100Mbit" in limit(network)
        network.limit_rate(None)
        assert "tbf" not in limit(network)


def test_an_error_leaves_no_host_and_no_program() -> None:
    programs = []

    def use_and_fail() -> None:
        with Network(delay=0.001) as network:
            programs.append(listening(network))
            assert len(hosts_of(os.getpid())) == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert [program.returncode for program in programs] == [-9]
    assert hosts_of(os.getpid()) == []


def test_the_hosts_of_a_killed_process_are_removed_by_the_next() -> None:
    code = "import os; from benchmarks.namespaces import Network; Network(); os.kill(os.getpid(), 9)"
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    killed.wait(60)
    assert len(hosts_of(killed.pid)) == 3
    Network().close()
    assert hosts_of(killed.pid) == []

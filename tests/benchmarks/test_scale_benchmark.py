"""The benchmark of two hosts: the link carries what is sent over it, and an update is the median of its times."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from socket import SHUT_WR, create_connection, create_server

import pytest

from benchmarks.links import ADDRESSES, FORK, enter, sent_bytes, two_distant_hosts, two_hosts
from benchmarks.scale import per_update

COUNT, SECONDS = 100_000, 20


def receive(pipe: Connection, pid: int) -> None:
    """On one host, count what the other sends."""
    enter(pid)
    with create_server((ADDRESSES[0], 5000)) as server:
        server.settimeout(SECONDS)
        pipe.send("ready")
        with server.accept()[0] as connection:
            pipe.send(sum(len(part) for part in iter(lambda: connection.recv(1 << 16), b"")))


def send(pipe: Connection, pid: int) -> None:
    """On the other, send it, and tell what the link has carried."""
    enter(pid)
    with create_connection((ADDRESSES[0], 5000), SECONDS) as connection:
        connection.sendall(bytes(COUNT))
        connection.shutdown(SHUT_WR)
        connection.recv(1)  # the other has received all, and closes
        pipe.send(sent_bytes())


@pytest.fixture(params=["veth", "relay"])
def hosts(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    allowed = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0
    if not (allowed and os.access("/dev/net/tun", os.W_OK)):
        pytest.skip("network namespaces are not allowed here")
    with ExitStack() as stack:
        if request.param == "veth":
            yield stack.enter_context(two_hosts())
        else:
            pids, set_link = stack.enter_context(two_distant_hosts())
            set_link(1e8, 0.001)
            yield pids


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # of Python 3.12
def test_a_link_carries_what_one_host_sends_to_the_other(hosts: list[int]) -> None:
    found = []
    ranks = []
    for work, pid in zip((receive, send), hosts, strict=True):
        ours, theirs = FORK.Pipe()
        ranks.append(FORK.Process(target=work, args=(theirs, pid), daemon=True))
        ranks[-1].start()
        if work is receive:
            assert ours.poll(SECONDS)
            assert ours.recv() == "ready"
        found.append(ours)
    assert all(each.poll(SECONDS) for each in found)
    received, carried = (each.recv() for each in found)
    assert received == COUNT
    assert COUNT < carried < 1.2 * COUNT  # with the headers
    assert sent_bytes() == 0  # the link is between the hosts alone
    for rank in ranks:
        rank.join(SECONDS)


def test_an_update_is_the_median_of_its_times_and_the_mean_of_its_bytes() -> None:
    first_rank = [[0.0, 1.0, 3.0, 4.0], [0.0, 0.5, 1.0, 1.8], [0, 100, 200, 600]]
    assert per_update([first_rank, []]) == (1.0, 0.6, 200.0)

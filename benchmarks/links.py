"""Two hosts on one machine: network namespaces that a link joins. It needs root.

A link of a given bandwidth and delay is two TUN devices, between which a process carries each packet as late as such a
link would: not all kernels have `tc`'s netem.
"""

import ctypes
import fcntl
import multiprocessing
import os
import select
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

DEVICE, ADDRESSES, MTU = "wire", ("10.77.0.1", "10.77.0.2"), 32_000
_TUN_SET, _TUN_WITHOUT_HEADER, _NET = 0x400454CA, 0x1001, 0x40000000
FORK = multiprocessing.get_context("fork")


@contextmanager
def two_hosts() -> Iterator[list[int]]:
    """Yield a process of each of two hosts, which a pair of virtual Ethernet devices joins."""
    with _two_namespaces() as pids:
        ends = [["name", DEVICE, "netns", str(pid)] for pid in pids]
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], check=True)
        _bring_up(pids)
        yield pids


@contextmanager
def two_distant_hosts() -> Iterator[tuple[list[int], Callable[[float, float], None]]]:
    """Yield the same, and a function that sets the link: bytes a second in each direction, and seconds of delay."""
    with _two_namespaces() as pids:
        ours, theirs = FORK.Pipe()
        relay = FORK.Process(target=_carry, args=(pids, theirs), daemon=True)
        relay.start()
        ours.recv()
        _bring_up(pids, "mtu", str(MTU))
        yield pids, lambda bandwidth, delay: ours.send((bandwidth, delay))
        relay.terminate()


def enter(pid: int) -> None:
    """Move this thread to the host of a process."""
    with open(f"/proc/{pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NET):
            raise OSError(ctypes.get_errno(), "Expected to enter a network namespace. Run the benchmark as root.")


def sent_bytes() -> int:
    """Return the bytes that the host of this thread has sent over the link; 0 without one."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return sum(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith(f"{DEVICE}:"))


@contextmanager
def _two_namespaces() -> Iterator[list[int]]:
    with ExitStack() as stack:
        pids = []
        for _ in ADDRESSES:
            process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
            stack.callback(process.wait)
            stack.callback(process.terminate)
            pids.append(process.pid)
        end = time.monotonic() + 30
        while any(os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net") for pid in pids):
            if time.monotonic() > end:
                raise TimeoutError("Expected network namespaces within 30 s. Run the benchmark as root.")
            time.sleep(0.01)
        yield pids


def _bring_up(pids: list[int], *options: str) -> None:
    for pid, address in zip(pids, ADDRESSES, strict=True):
        up = ["link", "set", DEVICE, "up", *options]
        for words in (["address", "add", f"{address}/24", "dev", DEVICE], up, ["link", "set", "lo", "up"]):
            subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words], check=True)


def _tun(pid: int) -> int:
    """Make a TUN device on the host of a process, and return its file."""
    enter(pid)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUN_SET, struct.pack("16sH22x", DEVICE.encode(), _TUN_WITHOUT_HEADER))
    return descriptor


def _carry(pids: list[int], orders: Connection) -> None:
    """Carry packets between two hosts forever: one leaves when those before it have, and arrives after the delay."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))  # it sleeps nearly always, and must be in time
    ends, bandwidth, delay = [_tun(pid) for pid in pids], 1e9, 0.0
    orders.send("ready")
    packets: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}  # by the end they arrive at
    free = dict.fromkeys(ends, 0.0)
    while True:
        due = min((queue[0][0] for queue in packets.values() if queue), default=time.monotonic() + 1)
        ready, _, _ = select.select([*ends, orders], [], [], max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for end in set(ready) & {*ends}:
            other = ends[1 - ends.index(end)]
            packet = os.read(end, 65_536)
            free[other] = max(now, free[other]) + len(packet) / bandwidth
            packets[other].append((free[other] + delay, packet))
        if orders in ready:
            bandwidth, delay = orders.recv()
        for end, queue in packets.items():
            while queue and queue[0][0] <= now:
                packet = queue.popleft()[1]
                with suppress(OSError):  # the other host is not up yet, and the packet is lost
                    os.write(end, packet)

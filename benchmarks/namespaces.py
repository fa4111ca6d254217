"""Several hosts on one Linux machine: network namespaces with own addresses and host names, joined by veth pairs.

Each host has an interface ``net0``, whose other end is a port of a switch in a further namespace, so that nothing is
left in the machine's network. The kernel limits what a host sends. The delay comes from a process that stands in place
of the switch's bridge, since ``tc netem`` is missing in many kernels.
"""

import ctypes
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

INTERFACE = "net0"
_ROOT = Path(__file__).parents[1]
_MTU = 9000  # a usual one between hosts of a cluster; headers are 0.7 % of what is sent
_FOLDER = Path("/run/netns")
_OWN = "timm-accel-"
_NUMBERS = count()
_NEW_NET, _NEW_UTS, _NEW_MOUNTS = 0x40000000, 0x04000000, 0x00020000  # of sched.h
_BIND, _PRIVATE = 0x1000, 0x44000  # of mount.h
_PACKET, _WITH_OFFLOADS, _ALL_PROTOCOLS = 263, 15, 3  # of if_packet.h and if_ether.h


@cache
def why_unavailable() -> str | None:
    """Return why no hosts can be made here, in words; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc"))):
        return "network namespaces need Linux, root and iproute2"
    try:
        Network().close()
    except OSError as error:
        return f"network namespaces are not allowed here ({error})"
    return None


class Network:
    """Hosts that reach each other and nothing else. Use it in a ``with`` statement, which removes them.

    Args:
        num_hosts: The hosts.
        delay: The seconds that a packet takes from host to host.
    """

    def __init__(self, num_hosts: int = 2, *, delay: float = 0) -> None:
        _remove_those_of_ended_processes()
        prefix = f"{_OWN}{os.getpid()}-{next(_NUMBERS)}-"
        self.addresses = [f"10.87.0.{host + 1}" for host in range(num_hosts)]
        self.names, self._switch = [f"{prefix}{host}" for host in range(num_hosts)], f"{prefix}s"
        self._programs: list[subprocess.Popen[str]] = []
        try:
            lines = [f"{address} host{host}\n" for host, address in enumerate(self.addresses)]
            _names_of(self._switch).write_text("".join(["127.0.0.1 localhost\n", *lines]))
            self._make(is_relayed=delay > 0)
            if delay > 0:
                self._start_relay(delay)
        except BaseException:
            self.close()
            raise

    def _make(self, is_relayed: bool) -> None:
        _ip("netns", "add", self._switch)
        if not is_relayed:
            self._in_switch("add", "bridge", "type", "bridge")
            self._in_switch("set", "bridge", "up")
        for host, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            _ip("netns", "add", name)
            ends = [_port(host), "mtu", str(_MTU)], [INTERFACE, "mtu", str(_MTU), "netns", name]
            self._in_switch("add", *ends[0], "type", "veth", "peer", "name", *ends[1])
            if not is_relayed:
                self._in_switch("set", _port(host), "master", "bridge")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", interface, "up")
            self.restore(host)

    def _in_switch(self, *words: str) -> None:
        _ip("-n", self._switch, "link", *words)

    def _start_relay(self, delay: float) -> None:
        code = f"from benchmarks.namespaces import relay; relay({self._switch!r}, {len(self.names)}, {delay})"
        program = subprocess.Popen([sys.executable, "-c", code], cwd=_ROOT, stdout=subprocess.PIPE, text=True)
        self._programs.append(program)
        assert program.stdout is not None
        if program.stdout.readline() != "ready\n":
            raise OSError("the relay has failed")

    def command(self, host: int, words: Sequence[Any]) -> list[str]:
        """Return the command line that runs a program on a host, under the host name ``host0``, ``host1``, …"""
        return [sys.executable, __file__, self.names[host], *map(str, words)]

    def start(self, host: int, words: Sequence[Any], **options: Any) -> subprocess.Popen[str]:
        """Start a program on a host; it is killed when the hosts are removed.

        Args:
            host: The number of the host.
            words: The command line.
            **options: Those of `subprocess.Popen`.
        """
        self._programs.append(subprocess.Popen(self.command(host, words), text=True, **options))
        return self._programs[-1]

    def limit_rate(self, rate: float) -> None:
        """Limit what each host sends.

        Args:
            rate: In Mbit/s.
        """
        for name in self.names:  # a burst is what is sent in 1 ms, and a packet of any size
            limits = ["rate", f"{rate:f}mbit", "burst", str(int(max(rate * 125, 65536))), "latency", "1s"]
            _run("tc", "-n", name, "qdisc", "replace", "dev", INTERFACE, "root", "tbf", *limits)

    def cut(self, host: int) -> None:
        """Cut the link of a host: it is not told, and neither are the others."""
        self._in_switch("set", _port(host), "down")

    def restore(self, host: int) -> None:
        """Restore the link of a host."""
        self._in_switch("set", _port(host), "up")

    def close(self) -> None:
        """End all programs on the hosts, and remove the hosts."""
        for name in (*self.names, self._switch):
            _remove(name)
        for program in self._programs:
            program.kill()  # it may not have entered its host yet
            program.wait()
            if program.stdout is not None:
                program.stdout.close()

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        self.close()


def enter(name: str) -> None:
    """Move this process to a host, under its host name.

    Args:
        name: One of `Network.names`.
    """
    with open(_FOLDER / name) as namespace:
        _call("setns", namespace.fileno(), _NEW_NET)
    _call("unshare", _NEW_UTS | _NEW_MOUNTS)
    _call("mount", b"none", b"/", None, _PRIVATE, None)
    _call("mount", bytes(_names_of(name)), b"/etc/hosts", None, _BIND, None)
    socket.sethostname(f"host{name.rpartition('-')[2]}")


def sent_bytes() -> int:
    """Return the bytes that the host of this process has sent to others; 0 for a process that entered none."""
    interfaces = psutil.net_io_counters(pernic=True)
    return interfaces[INTERFACE].bytes_sent if INTERFACE in interfaces else 0


def _call(function: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments):
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


def relay(switch: str, num_hosts: int, delay: float) -> None:
    """Send what arrives at each port of a switch to all other ports, later."""
    enter(switch)
    with suppress(PermissionError):  # it sleeps nearly always, and must be in time
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    ports = [_open_port(_port(host)) for host in range(num_hosts)]
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    print("ready", flush=True)
    while True:
        patience = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        for port in select.select(ports, [], [], patience)[0]:
            with suppress(OSError):  # the link is cut
                waiting.append((time.monotonic() + delay, port, port.recv(1 << 17)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, source, packet = waiting.popleft()
            for port in ports:
                if port is not source:
                    with suppress(OSError):
                        port.send(packet)


def _open_port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    port.setsockopt(_PACKET, _WITH_OFFLOADS, 1)  # packets larger than the link's, as the kernel passes them on
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        port.setsockopt(socket.SOL_SOCKET, option, 1 << 26)
    port.bind((name, _ALL_PROTOCOLS))
    return port


def _names_of(name: str) -> Path:
    """Return the file with the addresses of all hosts, which stands for their ``/etc/hosts``."""
    return Path(tempfile.gettempdir()) / f"{name.rpartition('-')[0]}-hosts"


def _port(host: int) -> str:
    return f"port{host}"


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"{' '.join(words)}: {result.stderr.strip()}")


def _remove(name: str) -> None:
    with suppress(OSError):  # it was not made
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
        for process in map(int, listed.split()):
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        _ip("netns", "delete", name)
        _names_of(name).unlink(missing_ok=True)


def _remove_those_of_ended_processes() -> None:
    for path in _FOLDER.glob(f"{_OWN}*"):
        process = path.name.removeprefix(_OWN).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            _remove(path.name)


if __name__ == "__main__":
    enter(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])

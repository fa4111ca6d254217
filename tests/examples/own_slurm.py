"""A SLURM of two nodes on this machine, with its own configuration and ports, as a program that tests start and end."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
NODES = ("127.0.0.1", "127.0.0.2")  # names that are addresses, since rank 0 is found by its name
CONFIG = """
ClusterName=own
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmdLogFile={folder}/slurmd_%n.log
SlurmdSpoolDir={folder}/spool_%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def found(program: str) -> str | None:
    """Return where a program is, also where only root has it on the path."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(found, PROGRAMS)), reason="needs root and the packages slurm-wlm and munge"
)


@contextmanager
def running_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons in a folder, give the variables that find them, and end them."""
    ports, host = _free_ports(3), socket.gethostname().partition(".")[0]
    for each in ("state", *(f"spool_{node}" for node in NODES)):
        (folder / each).mkdir()
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config.write_text(CONFIG.format(folder=folder, host=host, ports=ports, nodes=NODES))
    environment = os.environ | {"SLURM_CONF": str(config)}
    files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munge = [f"--{option}={files[name]}" for option, name in
             (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))]  # fmt: skip
    daemons = [["munged", "--foreground", "--force", f"--key-file={key}", *munge], ["slurmctld", "-D"]]
    daemons += [["slurmd", "-D", "-N", node] for node in NODES]
    with ExitStack() as stack:
        for program, *options in daemons:
            log = stack.enter_context(open(folder / f"{program}.out", "a"))
            command = [str(found(program)), *options]
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(daemon.wait, 20)
            stack.callback(daemon.terminate)
            time.sleep(0.3 if program == "munged" else 0)
        wait_until(lambda: answer(["sinfo", "-h", "-t", "idle", "-o", "%D"], environment) == "2", 60)
        yield environment


def answer(command: list[str], environment: dict[str, str]) -> str:
    """Return what a program of SLURM prints."""
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    ).stdout.strip()


def wait_until(condition, seconds: float) -> None:
    """Return once a condition holds; raise a `TimeoutError` where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} does not hold after {seconds} s")
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

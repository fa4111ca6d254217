"""Python programs in processes that are forked from one that has imported the libraries: they start at once.

`run` and `Program` stand for `subprocess.run` and `subprocess.Popen`. This file is run in a separate process, the
server, which forks for each program, since a process that runs tests should not be forked.
"""

import atexit
import functools
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

SERVERS = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}  # at import


class Program:
    """A program that was started in a new session, as `subprocess.Popen` starts it.

    Args:
        arguments: What would follow ``python``: ``-m`` or ``-c`` and its words, or a file and its words.
        env: The variables of its environment, by default those of this process.
        cwd: Its folder.
        stdout: A file for what it prints, by default that of this process.
        stderr: A file for its errors, also by default.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str = ".",
        stdout: Any = sys.stdout,
        stderr: Any = sys.stderr,
    ) -> None:
        variables = dict(os.environ if env is None else env)
        request = json.dumps([[str(each) for each in arguments], variables, str(Path(cwd).resolve())]).encode()
        reading, writing = os.pipe()
        socket.send_fds(_server(), [request], [stdout.fileno(), stderr.fileno(), writing])
        os.close(writing)
        self._told = os.fdopen(reading)
        self.args, self.pid, self.returncode = arguments, int(self._told.readline()), None

    def poll(self) -> int | None:
        """Return the exit code, None before its end."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end, and return the exit code."""
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired([*self.args], timeout)
        code = self.poll()
        assert code is not None
        return code


def run(arguments: Sequence[Any], timeout: float = 180, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program, with the arguments of `Program`, and return its exit code and all that it printed."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        program = Program(arguments, stdout=stdout, stderr=stderr, **options)
        try:
            program.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess([*arguments], program.returncode or 0, stdout.read(), stderr.read())


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        descriptor = theirs.fileno()
        command = [sys.executable, __file__, str(descriptor)]
        process = subprocess.Popen(command, env=os.environ | SERVERS, pass_fds=[descriptor])
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _next_program(server: socket.socket) -> list[str]:
    """Fork for each request; in the new process, return the arguments of its program."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, *_ = socket.recv_fds(server, 1 << 20, 3)
        if not request:  # the tests have ended
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.close()
    stdout, stderr, told = descriptors
    child = os.fork()
    if child:  # this process tells how the program ends
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(told, f"{code}\n".encode())
        os._exit(0)
    os.setsid()
    os.write(told, f"{os.getpid()}\n".encode())
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    arguments, variables, folder = json.loads(request)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    random.seed()
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    return arguments


def _become(first: str, *words: str) -> None:
    """Do what ``python`` does with its arguments."""
    if first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = [*words]
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = [first, *words] if first != "-c" else ["-c", *words[1:]]
    sys.path.insert(0, "" if first == "-c" else str(Path(first).parent))
    text = words[0] if first == "-c" else Path(first).read_text()
    main = sys.modules["__main__"] = ModuleType("__main__")
    if first != "-c":
        main.__file__ = first
    exec(compile(text, "<string>" if first == "-c" else first, "exec"), main.__dict__)


if __name__ == "__main__":
    del sys.path[0]  # this folder, which a program has only if it asks for it

    import torch.distributed.launcher.api

    import timm_accel.commands.train
    import timm_accel.trainers  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what the imports made is spared from the `gc.collect()` of each `Accelerator.prepare` (0.2 s)
    _become(*_next_program(socket.socket(fileno=int(sys.argv[1]))))

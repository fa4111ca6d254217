"""The lock of a run folder: what is found, and what to do about it."""

import errno
import fcntl
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from refusal import refused

from timm_accel.states.run_dir import lock_run_dir, unlock_run_dir


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with refused(
        OSError, "file system with locks", str(tmp_path), os.strerror(number), "Name a folder on another disk"
    ):
        lock_run_dir(tmp_path)


@pytest.mark.filterwarnings("ignore:flock not supported on this filesystem")
def test_a_kernel_without_flock_gets_a_lock_by_a_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*args: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = lock_run_dir(tmp_path)
    with refused(BlockingIOError, "one run at a time", f"process {os.getpid()} on {platform.node()})"):
        lock_run_dir(tmp_path)
    unlock_run_dir(lock)
    assert not (tmp_path / "lock").exists()
    unlock_run_dir(lock_run_dir(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"12345\n{platform.node()}\n", (f"process 12345 on {platform.node()})", "Wait for it or end it")),
        ("12345\nnode-7\n", ("process 12345 on node-7)", "If it has ended with its machine, delete", "lock'")),
        ("", ("lock' does not tell which process)", "if no run uses the folder, delete that file")),
        ("12345", ("does not tell which process)",)),
        ("garbage\nnode-7\n", ("does not tell which process)",)),
        ("\x00\x1b[2J\n\x07", ("does not tell which process)",)),
        ("12345\n\x1b[2J\n", ("does not tell which process)",)),
    ],
    ids=["here", "elsewhere", "empty", "no host", "no process", "binary", "no name"],
)
def test_a_lock_that_is_held_names_its_holder_and_what_to_do(
    content: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    lock = lock_run_dir(tmp_path)
    (tmp_path / "lock").write_text(content)
    with refused(BlockingIOError, "one run at a time", str(tmp_path), *words):
        lock_run_dir(tmp_path)
    unlock_run_dir(lock)


def test_what_a_killed_run_left_in_the_lock_is_replaced(tmp_path: Path) -> None:
    for left in (b"", b"1\nnode-7\n", b"\xff\xfe", b"x" * 5000):
        (tmp_path / "lock").write_bytes(left)
        lock = lock_run_dir(tmp_path)
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n{platform.node()}\n"
        unlock_run_dir(lock)

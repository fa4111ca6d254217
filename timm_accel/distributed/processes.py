"""accelerate's process state, made as its `Accelerator` makes it, and checked against what was launched."""

import os
import pickle
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed, nn

from timm_accel.distributed.connections import restart_explained, timeout
from timm_accel.distributed.consensus import agreed, gather_on_all, send_to
from timm_accel.distributed.launching import (
    applied_sharding,
    asked_sharding,
    check_launch,
    launcher_options,
    refuse_sharding,
)

T = TypeVar("T")


def process_state() -> PartialState:
    """Return accelerate's process state. Whatever is created first fixes it for the whole process.

    ``PartialState()`` ignores ``ACCELERATE_USE_CPU`` (accelerate 1.15): it would part the processes of a CPU program.

    Raises:
        ValueError: The processes that were launched do not run together, or sharded weights were asked for.
    """
    launcher = launcher_options()
    refuse_sharding(asked_sharding(os.environ, launcher))
    patience = timeout(os.environ)
    options = {} if patience is None else {"timeout": patience}
    with restart_explained(os.environ):
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **options)
    is_grouped = distributed.is_available() and distributed.is_initialized()
    check_launch(os.environ, launcher, distributed.get_world_size() if is_grouped else 1, state.num_processes)
    return state


def check_accelerator(accelerator: Accelerator, model: nn.Module) -> None:
    """Check an accelerator that anyone may have created, and the model that it is to prepare.

    Args:
        accelerator: The accelerator.
        model: The model as it was given.

    Raises:
        ValueError: The processes that were launched do not run together, or weights are sharded.
    """
    process_state()
    refuse_sharding(applied_sharding(accelerator, model))


def on_each_host(state: PartialState, work: Callable[[], T]) -> T:
    """Return what `work` returns on one process of each host, or raise on all what it raises on one. Collective.

    The other processes of the host get a copy; where there can be none, they do the work afterwards. The host of rank 0
    does it before the other hosts, which so find the files that it has left in a folder of all hosts.

    Args:
        state: The process state.
        work: What to do. It returns what `pickle` takes.
    """
    rank, num_processes = state.process_index, state.num_processes
    if num_processes == 1:
        return work()
    hosts = gather_on_all(socket.gethostname(), num_processes)
    first, *others = [number for number, host in enumerate(hosts) if host == hosts[rank]]
    made = agreed(lambda: [work()] if rank == 0 else [], num_processes)
    made += agreed(lambda: [work()] if rank == first != 0 else [], num_processes)
    packed = b""
    with suppress(Exception):  # a class of the user's may be of any kind
        packed = pickle.dumps(made) if made else b""
    packed = send_to(others, first, packed)
    return agreed(lambda: made or (pickle.loads(packed) if packed else [work()]), num_processes)[0]

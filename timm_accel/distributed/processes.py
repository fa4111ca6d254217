"""accelerate's process state, made as its `Accelerator` makes it, and checked against what was launched."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed, nn

from timm_accel.distributed.consensus import wait_for_all
from timm_accel.distributed.launching import (
    applied_sharding,
    asked_sharding,
    check_launch,
    launcher_options,
    refuse_sharding,
)


def process_state() -> PartialState:
    """Return accelerate's process state. Whatever is created first fixes it for the whole process.

    ``PartialState()`` ignores ``ACCELERATE_USE_CPU`` (accelerate 1.15): it would part the processes of a CPU program.

    Raises:
        ValueError: The processes that were launched do not run together, or sharded weights were asked for.
    """
    launcher = launcher_options()
    refuse_sharding(asked_sharding(os.environ, launcher))
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
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


@contextmanager
def local_main_process_first(state: PartialState) -> Iterator[None]:
    """Let one rank of each machine do something before the others. Collective.

    accelerate's function of this name has a barrier that names a GPU, also on CPUs (accelerate 1.15): with fewer GPUs
    than ranks it fails.
    """
    if not state.is_local_main_process:
        wait_for_all(state.num_processes)
    yield
    if state.is_local_main_process:
        wait_for_all(state.num_processes)

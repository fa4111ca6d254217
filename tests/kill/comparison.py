"""What a run leaves, compared bit by bit."""

from typing import Any

import torch
from harness import Run

from timm_accel.training.state import open_state, state_folders


def contents(run: Run) -> dict[str, Any]:
    """Return everything that a run leaves and that must be the same: its newest state, history and best weights."""
    state = open_state(state_folders(run.states)[0])
    state.check()
    found = {name: state.load(name) for name in state.manifest["files"]}
    found |= {name: state.manifest[name] for name in ("progress", "num_updates", "run")}
    files = [run.history, *(path for path in run.run_dir.glob("best*/*") if path.is_file())]
    return found | {str(path.relative_to(run.run_dir)): path.read_bytes() for path in files}


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Return where two values differ, down to the last bit and the sign of zero."""
    if type(first) is not type(second):
        return [where]
    if isinstance(first, dict):
        shared = [key for key in first if key in second]
        missing = [f"{where}/{key}" for key in first.keys() ^ second.keys()]
        return missing + [place for key in shared for place in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, list | tuple):
        return differences(dict(enumerate(first)), dict(enumerate(second)), where)
    return [] if _bits(first) == _bits(second) else [where]


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return value.hex() if isinstance(value, float) else value

"""What a run leaves, to be compared bit by bit."""

from typing import Any

from history_rows import without_speed
from kill_harness import Run

from timm_accel.states.folder import open_state, state_folders


def contents(run: Run) -> dict[str, Any]:
    """Return everything that a run leaves and that must be the same: its newest state, history and best weights."""
    state = open_state(state_folders(run.states)[0])
    state.check()
    found = {name: state.load(name) for name in state.manifest["files"]}
    found |= {name: state.manifest[name] for name in ("progress", "num_updates", "run")}
    files = [run.history, *(path for path in run.run_dir.glob("best*/*") if path.is_file())]
    return found | {str(path.relative_to(run.run_dir)): without_speed(path) for path in files}

"""The run folder: claimed before any work, never written over."""

import tempfile
from pathlib import Path

RUN_CONTENTS = ("history.csv", "state", "best", "best_ema")


def check_run_dir(run_dir: str | Path) -> Path:
    """Create the folder if need be, and return it as a `Path`.

    Raises:
        FileExistsError: It already holds a run.
        OSError: It cannot be created or written to.
    """
    folder = Path(run_dir)
    for name in RUN_CONTENTS:
        if (folder / name).exists():
            raise FileExistsError(
                f"Expected run_dir to hold no run yet, since runs are never overwritten, but got {str(run_dir)!r}, "
                f"which holds {name!r}. Name a new folder, or move the old one away."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            f"Expected run_dir to be a folder that can be written to, but got {str(run_dir)!r} ({error.strerror}). "
            "Name another folder."
        ) from error
    return folder

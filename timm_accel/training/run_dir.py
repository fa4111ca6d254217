"""The run folder: claimed before any work, never written over."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

RUN_CONTENTS = ("history.csv", "state", "best", "best_ema")


def check_run_dir(run_dir: str | Path, contents: Iterable[str] = RUN_CONTENTS, *, argument: str = "run_dir") -> Path:
    """Create the folder if need be, and return it as a `Path`.

    Args:
        run_dir: The folder.
        contents: What must not be there yet.
        argument: What the user calls the folder, for the messages.

    Raises:
        FileExistsError: It already holds a run.
        OSError: It cannot be created or written to.
    """
    folder = Path(run_dir)
    for name in contents:
        if (folder / name).exists():
            raise FileExistsError(
                f"Expected {argument} to hold no run yet, since runs are never overwritten, but got {str(run_dir)!r}, "
                f"which holds {name!r}. Name a new folder, or move the old one away."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            f"Expected {argument} to be a folder that can be written to, but got {str(run_dir)!r} ({error.strerror}). "
            "Name another folder."
        ) from error
    return folder

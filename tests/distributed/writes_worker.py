"""What each rank of a run with all default files writes, for `test_written_files.py`."""

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import tensorboard.compat.proto.event_pb2  # noqa: F401 - here and below, so that the ranks need not
import torchmetrics.functional.classification  # noqa: F401

from timm_accel.commands.main import main as command

FOLDER = Path(sys.argv[1])
WRITING = os.O_WRONLY | os.O_RDWR
ONE = ("open", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.utime")
EVENTS = dict.fromkeys(ONE, 1) | dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2)  # and how many paths each has
written: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note each path below the folder that this process writes, makes, renames or removes."""
    if event not in EVENTS or (event == "open" and not arguments[2] & WRITING):
        return
    for path in arguments[: EVENTS[event]]:
        place = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if place.startswith(str(FOLDER)):
            written.append(os.path.relpath(place, FOLDER))


def main() -> None:
    rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
    sys.addaudithook(watch)
    words = (
        f"train --data-dir data --run-dir run{count} --model test_resnet --image-size 32 --num-epochs 2 --batch-size 2 "
        "--num-workers 0 --save-every-n-updates 1 --trackers [tensorboard] --report true"
    )
    os.chdir(FOLDER)
    os.environ["XDG_CACHE_HOME"] = str(FOLDER / "cache")
    with redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
        code = command(words.split())
    record = {"code": code, "printed": printed.getvalue(), "written": written[:]}
    Path(FOLDER, f"{count}_{rank}.json").write_text(json.dumps(record))

"""Kill a run many times with SIGKILL, resume it each time, and compare it bit by bit with an uninterrupted run.

    python -m benchmarks kill_test --kills 100 --processes 1 --seed 0

--part adds freezing, distillation, resolution, cache or balanced; `all` shares the kills among runs with each of them.

Needs the extra test. Prints a line for each kill, and fails if a bit differs. Of ten kills, four
come at a random time after one to three updates, two while a state is written, one after a row of the history, one
during start-up, and two hit only one process. A state is saved after every update, so that the run makes progress.
"""

import argparse
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.tables import Table

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / name) for name in ("kill", ".")]

from kill_comparison import contents  # noqa: E402
from kill_harness import UPDATES_PER_EPOCH, Kill, Run, kill_and_resume, write_data  # noqa: E402
from kill_worker import PARTS  # noqa: E402
from tiny_runs import differences  # noqa: E402

UPDATES_PER_KILL = 5  # the usual maximum
KINDS = ["update"] * 4 + ["write"] * 2 + ["alone"] * 2 + ["row", "start"]


def kill_and_compare(whole: Run, killed: Run, num_kills: int, seed: int) -> tuple[list[Kill], list[str]]:
    """Run the first without kills, kill the second, and return the kills and where the two differ."""
    draw, kills = random.Random(seed), []
    kinds = (KINDS * num_kills)[:num_kills]
    draw.shuffle(kinds)

    def report(kill: Kill) -> None:
        kills.append(kill)
        print(
            f"kill {len(kills)} ({kill.kind}): after {kill.updates} updates since the start, "
            f"{kill.left or 'between writes'}; newest state {kill.newest or 'none'}",
            flush=True,
        )

    whole.finish(resume=False)
    kill_and_resume(killed, kinds, draw, report)
    places = differences(contents(whole), contents(killed))
    expected = ["epoch", *map(str, range(1, whole.epochs + 1))]
    return kills, places if whole.rows() == killed.rows() == expected else [*places, "the rows of the history"]


def compare(options: argparse.Namespace, part: str, num_kills: int, folder: Path) -> list[str]:
    """Compare one killed run with one that is not, and return the row of the table."""
    started = time.monotonic()
    extra = 2 if part == "resolution" else 1  # without accumulation an epoch has twice the updates
    epochs = 1 + num_kills * UPDATES_PER_KILL // (extra * UPDATES_PER_EPOCH)
    data = write_data(folder / "data")
    whole = Run(folder / "whole", data, options.processes, epochs, every_n_updates=1, part=part)
    kills, places = kill_and_compare(whole, replace(whole, folder=folder / "killed"), num_kills, options.seed)
    if places or len(kills) < num_kills:
        raise SystemExit(f"{part}: {len(kills)} kills of {num_kills}; these differ: {', '.join(places[:20]) or 'none'}")
    writes, seconds = sum(kill.inside_a_write for kill in kills), time.monotonic() - started
    run = f"{part}, processes {options.processes}, seed {options.seed}"
    return [run, *map(str, (len(kills), writes, epochs)), "yes", f"{seconds:.0f}"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new folder to keep; the default is a temporary one")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="none")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Compare a killed run of each part."""
    parts = [part for part in PARTS if part != "none"] if arguments.part == "all" else [arguments.part]
    with tempfile.TemporaryDirectory() as unkept:
        folder, kills = arguments.folder or Path(unkept), arguments.kills // len(parts)
        rows = [compare(arguments, part, kills, folder / part) for part in parts]
    return [Table("killed runs", ["part", "kills", "during a write", "epochs", "bit-equal", "seconds"], rows)]

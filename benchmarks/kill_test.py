"""Kill a run many times with SIGKILL, resume it each time, and compare it bit by bit with an uninterrupted run.

    python benchmarks/kill_test.py [--kills 100] [--processes 1] [--seed 0] [--part none] [--folder DIR]

--part adds freezing, distillation, resolution, cache or balanced; `all` shares the kills among runs with each of them.

Needs the extra test. Prints a line for each kill and a summary, and exits with 1 if a bit differs. Of ten kills, four
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


def compare(options: argparse.Namespace, part: str, num_kills: int, folder: Path) -> bool:
    """Compare one killed run with one that is not, and print the result."""
    started = time.monotonic()
    extra = 2 if part == "resolution" else 1  # without accumulation an epoch has twice the updates
    epochs = 1 + num_kills * UPDATES_PER_KILL // (extra * UPDATES_PER_EPOCH)
    data = write_data(folder / "data")
    whole = Run(folder / "whole", data, options.processes, epochs, every_n_updates=1, part=part)
    kills, places = kill_and_compare(whole, replace(whole, folder=folder / "killed"), num_kills, options.seed)
    for place in places[:20]:
        print(f"differs: {place}")
    print(
        f"{part}: {len(kills)} kills on {options.processes} processes, {sum(kill.inside_a_write for kill in kills)} "
        f"during a write, {len(kills)} restarts, {epochs} epochs, bit-equal: {'no' if places else 'yes'}, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    return not places and len(kills) >= num_kills


def main() -> bool:
    """Print the kills and the result, and return whether every bit is equal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new folder to keep; the default is a temporary one")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="none")
    options = parser.parse_args()
    parts = [part for part in PARTS if part != "none"] if options.part == "all" else [options.part]
    with tempfile.TemporaryDirectory() as unkept:
        folder = options.folder or Path(unkept)
        results = [compare(options, part, options.kills // len(parts), folder / part) for part in parts]
    return all(results)


if __name__ == "__main__":
    sys.exit(not main())

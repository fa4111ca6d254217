"""Time the start of a process until the first update of the demo, and the help of the command line, in turn.

    python -m benchmarks start --rounds 7

Each start is a new process that ends right after the first update: imports, the demo's model and images, its loader
worker, AdamW, Mixup, EMA. ``timm-accel train`` also writes a run folder, prints its screen and its estimate.
"""

import argparse
import tempfile
from functools import partial

from benchmarks.contenders import names
from benchmarks.pairs import in_turn
from benchmarks.processes import Spent, pairs_of, spend
from benchmarks.tables import Table

FIRST_UPDATE = """
from pathlib import Path
from benchmarks.contenders import contender
train = contender({name!r})
from benchmarks.whole_run import job_of
job = job_of({name!r}, Path({images!r}), None, 8, "resnet10t", 64)
watch()
train(job)
"""
DEMO = """
from timm_accel.commands.main import main
watch()
main(["train", "--run_dir", {states!r}])
"""
HELP = """
from timm_accel.commands.main import main
main(["--help"])
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=7)


def start(code: str, spent: list[Spent], stops: bool = True) -> float:
    """Run code in a new process until its first update, and return its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        spent.append(spend(code.replace("FOLDER", folder), stops=stops))
    return spent[-1].wall


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return a table of wall times and one of processor times of the first update, and one of the help."""
    from timm_accel.data import write_digits  # torch, which a child should import itself

    images = str(write_digits())
    codes = {name: FIRST_UPDATE.format(name=name, images=images) for name in names()}
    codes["timm-accel train"] = DEMO.format(states="FOLDER/run")
    tables = []
    for title, ways, stops in (
        ("the first update", codes, True),
        ("help", {"an empty program": "", "timm-accel --help": HELP}, False),
    ):
        spent: dict[str, list[Spent]] = {way: [] for way in ways}
        wall = in_turn({way: partial(start, code, spent[way], stops) for way, code in ways.items()}, arguments.rounds)
        processor = pairs_of(spent, "processor")
        tables += [wall.table(f"wall time to {title}", "s"), processor.table(f"processor time to {title}", "s")]
    return tables

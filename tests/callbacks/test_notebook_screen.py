"""A run in a notebook: what its cell shows at the end and in between."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

IMPORTS = "import os, sys, tqdm.auto"  # it warns without ipywidgets, and timm imports it
CELL = """
os.environ["ACCELERATE_USE_CPU"] = "true"
sys.path.insert(0, {tests!r})
from tiny_runs import fit, make_trainer, tiny_data
from timm_accel.callbacks import Callback, PrintMetricsCallback, ProgressBarCallback, DEFAULT_CALLBACKS
from timm_accel.callbacks.output import progress_bar
progress_bar._Notebook.interval = 0.0
trainer = fit(make_trainer(callbacks=DEFAULT_CALLBACKS), eval_dataset=tiny_data(6), num_epochs=3)
"""
EXECUTE = """
import json, sys
import nbformat
from nbclient import NotebookClient

class Watching(NotebookClient):
    seen = []
    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.seen.append(msg["content"]["data"]["text/plain"])
        return super().process_message(msg, cell, cell_index)

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sys.argv[1:]])
Watching(notebook, timeout=120).execute()
print(json.dumps({"outputs": notebook.cells[1].outputs, "seen": Watching.seen}))
"""


def test_a_cell_shows_one_line_that_is_redrawn_and_the_table(tmp_path: Path) -> None:
    for module in ("nbclient", "ipykernel"):
        pytest.importorskip(module)
    cell = CELL.format(tests=str(Path(__file__).parents[1]))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXECUTE, IMPORTS, cell],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    line, *table = found["outputs"]  # nothing else: no warning, no second bar
    assert (line["output_type"], line["data"]) == ("display_data", {"text/plain": ""})
    assert {(part["output_type"], part.get("name")) for part in table} == {("stream", "stdout")}
    words = [row.split() for row in "".join(part["text"] for part in table).splitlines()]
    assert [row[0] for row in words] == ["epoch", "1/3", "2/3", "3/3"]
    assert words[0][:4] == ["epoch", "train_loss", "eval_loss", "lr"]
    shown = [text.split("%")[0] for text in found["seen"]]
    epoch = ["train {}/3  0", "train {}/3 25", "train {}/3 50", "train {}/3 75", "train {}/3 100"]
    epoch += ["evaluate {}/3  0", "evaluate {}/3 50", "evaluate {}/3 100"]
    assert shown == [text.format(number) for number in (1, 2, 3) for text in epoch] + [""]
    assert all(len(text) <= 80 for text in found["seen"])

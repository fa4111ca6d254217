"""Export one small model of each timm family in every format, and write down what fails and why.

    python -m benchmarks families_export
    python -m benchmarks families_export vgg11 levit_128s --out two.json

The models are the named ones, otherwise those of ``families``. Weights are random. Parameters that timm initializes
near zero (heads, layer scales) are drawn again, so that the comparison sees differences. Each model runs in a separate
process with a time limit. ``--log`` saves finished rows, so that a second start resumes. `docs/families_export.md`
shows the table. Needs the extra export.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.families import FAMILIES
from benchmarks.tables import Table
from timm_accel.export import Exported, export_onnx, export_program, export_torchscript

SECONDS = 300
FORMATS: dict[str, tuple[Callable[..., Exported], str, dict[str, Any]]] = {
    "onnx": (export_onnx, "model.onnx", {}),
    "pt2": (export_program, "model.pt2", {}),
    "script": (export_torchscript, "model.pt", {"method": "script"}),
    "trace": (export_torchscript, "model.pt", {"method": "trace"}),
}


def check_exports(name: str, **options: Any) -> dict[str, str]:
    """Return ``ok (1e-06)`` or a short reason for each of ``onnx``, ``pt2``, ``script`` and ``trace``."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options)
    draw_what_is_near_zero(model)
    with TemporaryDirectory() as folder:
        return {kind: check_export(model, Path(folder), kind) for kind in FORMATS}


def check_export(model: nn.Module, folder: Path, kind: str) -> str:
    """Export to one format, with fused branches if possible, and return the maximum difference or the reason."""
    exporter, file_name, options = FORMATS[kind]
    reasons = []
    for fused in (True, False):
        try:
            exported = exporter(model, folder / file_name, reparameterize=fused, **options)
        except Exception as error:  # any error belongs in the table
            reasons.append(str(error).split("but got ", 1)[-1].split(". Try another")[0].replace("|", "/")[:160])
            continue
        older = ", older exporter" if kind == "onnx" and exported.method != "dynamo" else ""
        kept = "" if fused else ", branches kept"
        return f"ok ({exported.max_difference:.0e}{older}{kept})"
    return reasons[0]


@torch.no_grad()
def draw_what_is_near_zero(model: nn.Module) -> None:
    """Draw parameters again whose largest value is below 0.01."""
    for parameter in model.parameters():
        if parameter.abs().max() < 0.01:
            parameter.normal_(std=0.05)


def check_in_a_process(name: str) -> dict[str, str]:
    """Return what `check_exports` returns in a separate process within the time limit."""
    program = "import json; from benchmarks.families_export import check_exports"
    command = [sys.executable, "-c", f"{program}; print(json.dumps(check_exports({name!r})))"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(FORMATS, f"not within {SECONDS} s")
    if done.returncode:
        return dict.fromkeys(FORMATS, (done.stderr.strip().splitlines() or ["killed"])[-1][:160])
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, dict[str, str]]) -> Table:
    """Return a row per model, and the number that pass for each format."""
    rows = [[name, *(found[kind] for kind in FORMATS)] for name, found in results.items()]
    passed = [str(sum(found[kind].startswith("ok") for found in results.values())) for kind in FORMATS]
    rows.append([f"passed, of {len(results)}", *passed])
    return Table("exports", ["model", *FORMATS], rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("names", nargs="*", help="models; none for those of families")
    parser.add_argument("--log", type=Path, default=Path("families_export.json"), help="rows that are finished")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Check every model that is not in the log yet."""
    results = json.loads(arguments.log.read_text()) if arguments.log.exists() else {}
    for name in arguments.names or FAMILIES:
        if name not in results:
            results[name] = check_in_a_process(name)
            arguments.log.write_text(json.dumps(results, indent=1))
            print(name, results[name], flush=True)
    return [table(dict(sorted(results.items())))]

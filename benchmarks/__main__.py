"""Run a benchmark, print its tables and write them to a file: ``python -m benchmarks NAME [options]``.

Without a name it lists the benchmarks. ``report`` writes the tables of all files into the pages that show them.
"""

import argparse
import json
import os
import platform
import re
import shlex
import sys
import time
from datetime import date
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from benchmarks.tables import PAGES, RESULTS, refreshed
from timm_accel.messages import nearest

PACKAGES = ("torch", "timm", "pytorch-accelerated", "accelerate", "lightning", "fastai")


def benchmarks() -> dict[str, str]:
    """Return the first sentence of each benchmark by its name, without importing any."""
    texts = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
    names = [name for name, text in texts.items() if "\ndef add_options" in text]
    return {name: " ".join(re.split(r"(?<=\.)\s", texts[name][3:], maxsplit=1)[0].split()) for name in names}


def machine() -> dict[str, Any]:
    """Return what it runs on: GPU and processor, cores, and versions of the packages that are compared."""
    import torch  # the list of names is there at once

    cpu = Path("/proc/cpuinfo")
    names = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    names += re.findall(r"^model name\s*: (.+)$", cpu.read_text(), re.M)[:1] if cpu.exists() else [platform.machine()]
    versions = {each.name: each.version for each in metadata.distributions() if each.name in PACKAGES}
    versions = {"Python": platform.python_version(), **{name: versions[name] for name in PACKAGES if name in versions}}
    return {"machine": ", ".join(names), "cores": os.cpu_count(), "versions": versions}


def run(name: str, options: list[str]) -> None:
    """Run one benchmark."""
    module = import_module(f"benchmarks.{name}")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m benchmarks {name}", description=module.__doc__, formatter_class=layout)
    module.add_options(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the file for the tables")
    arguments, began = parser.parse_args(options), time.perf_counter()
    tables = module.main(arguments)
    words = [re.sub(r"^(--\w+=)?/(.*/)?", r"\1", word) for word in options]  # no folders of this machine
    about = {
        "command": shlex.join(["python", "-m", "benchmarks", name, *words]),
        "date": str(date.today()),
        "seconds": round(time.perf_counter() - began, 1),
        **machine(),
        "sizes": {key: value for key, value in vars(arguments).items() if isinstance(value, int | float | list)},
        "tables": [vars(table) for table in tables],
    }
    print("\n\n".join(f"{table.name}\n\n{table.markdown()}" for table in tables))
    arguments.out.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def report() -> None:
    """Write the pages."""
    try:
        texts = refreshed([page.read_text() for page in PAGES])
    except ValueError as error:
        sys.exit(str(error))
    for page, text in zip(PAGES, texts, strict=True):
        page.write_text(text)


def main(words: list[str]) -> None:
    """Do what the command line asks for."""
    known = benchmarks() | {"report": f"Write the tables of {RESULTS.name}/ into the pages that show them."}
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        print("\n".join(f"{name:<16} {sentence}" for name, sentence in known.items()))
    elif words[0] == "report":
        report()
    elif words[0] in known:
        run(words[0], words[1:])
    else:
        sys.exit(f"Expected NAME to be a benchmark, but got {words[0]!r}. {nearest(words[0], known)}")


if __name__ == "__main__":
    main(sys.argv[1:])

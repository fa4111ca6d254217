"""A command on which rank 0 works alone, on each rank: what it printed and which exit code it had."""

import json
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from timm_accel.commands.main import main as command

FOLDER, WORDS = Path(sys.argv[1]), sys.argv[2:]


def main() -> None:
    with redirect_stdout(StringIO()) as printed:
        code = command(WORDS)
    (FOLDER / f"alone_{os.environ['RANK']}.json").write_text(json.dumps([code, printed.getvalue()]))

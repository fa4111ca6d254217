"""Record the options of all commands in ``options.json``: ``python -m timm_accel.commands.parsing.record``."""

import json
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from timm_accel.commands.main import COMMANDS
from timm_accel.commands.parsing.options import RECORD, Option
from timm_accel.commands.parsing.signatures import recorded

_DEFAULTS = {field.name: field.default for field in fields(Option)}


def record() -> str:
    """Return the content of ``options.json``: what differs from an `Option`'s defaults, from the real signatures."""
    found: dict[str, Any] = {}
    for name in COMMANDS:
        module = name.replace("-", "_")
        command = recorded(getattr(import_module(f"timm_accel.commands.{module}"), module))
        options = [
            {key: value for key, value in asdict(option).items() if value != _DEFAULTS[key]}
            for option in command.options
        ]
        found[name] = {"about": command.about, "options": options}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(str(RECORD)).write_text(record(), encoding="utf-8")

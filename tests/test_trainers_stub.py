"""Editors read the options of the ready-made trainers from `trainers.pyi`, which is made from the mixins."""

import ast
import inspect
import textwrap
from pathlib import Path

import timm_accel
from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer

STUB = Path(timm_accel.__file__).with_name("trainers.pyi")
HEAD = """from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from timm_accel.mixins import (
{mixins}
)
from timm_accel.upstream import TrainerCallback
"""


def annotations(kind: type) -> dict[str, str]:
    """The source text of each option's type."""
    found: dict[str, str] = {}
    for each in kind.__mro__:
        if "__init__" in vars(each) and issubclass(each, LoopTrainer):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(vars(each)["__init__"]))).body
            assert isinstance(node, ast.FunctionDef)
            for argument in [*node.args.args[1:], *node.args.kwonlyargs]:
                assert argument.annotation is not None
                found.setdefault(argument.arg, ast.unparse(argument.annotation).replace("'", '"'))
    return found


def stub(kind: type) -> str:
    types, lines, keyword = annotations(kind), [], False
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            lines, keyword = [*lines, "*,"], True
        default = "" if parameter.default is parameter.empty else " = ..."
        lines.append(f"{name}: {types[name]}{default},")
    bases = "".join(f"\n    {base.__name__}," for base in kind.__bases__)
    parameters = "".join(f"\n        {line}" for line in lines)
    return (
        f"class {kind.__name__}({bases}\n):\n    default_scheduler_args: ClassVar[dict[str, Any] | None]\n\n"
        f"    def __init__(\n        self,{parameters}\n    ) -> None: ...\n"
    )


def whole_stub() -> str:
    names = sorted(base.__name__ for base in {*TimmTrainer.__bases__, *TimmMixupTrainer.__bases__} - {TimmTrainer})
    head = HEAD.format(mixins="".join(f"    {name},\n" for name in names).rstrip("\n"))
    return "\n".join([head, stub(TimmTrainer), stub(TimmMixupTrainer)])


def test_the_stub_shows_what_the_mixins_take() -> None:
    assert STUB.read_text() == whole_stub(), f"Write this to {STUB}:\n{whole_stub()}"

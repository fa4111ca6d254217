"""Public names are documented, and their ``Args`` are those of the signature."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

import timm_accel


def public_objects() -> Iterator[tuple[str, Any]]:
    """Every public module, class and function of the package, and every public method that overrides nothing."""
    for info in pkgutil.walk_packages(timm_accel.__path__, "timm_accel."):
        module = importlib.import_module(info.name)
        yield info.name, module
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{info.name}.{name}", value
            if inspect.isclass(value):
                for member, method in vars(value).items():
                    overrides = any(hasattr(base, member) for base in value.__mro__[1:])
                    if not member.startswith("_") and not overrides and isinstance(method, FunctionType | property):
                        yield f"{info.name}.{name}.{member}", method


OBJECTS = dict(public_objects())


def test_there_is_something_to_look_at() -> None:
    assert len(OBJECTS) > 80


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_has_a_docstring_of_a_sentence(name: str) -> None:
    docstring = inspect.getdoc(OBJECTS[name]) or ""
    first = docstring.split("\n\n")[0]
    assert first.endswith((".", ":", "?")), name
    if inspect.isclass(OBJECTS[name]):
        assert OBJECTS[name].__doc__, name  # its own, not its base's


@pytest.mark.parametrize("name", [name for name, value in OBJECTS.items() if "Args:" in (inspect.getdoc(value) or "")])
def test_the_arguments_of_a_docstring_are_those_of_the_signature(name: str) -> None:
    value = OBJECTS[name]
    section = re.split(r"\n(?=\S)", inspect.getdoc(value).split("Args:\n")[1])[0]
    documented = set(re.findall(r"^    \*{0,2}(\w+):", section, re.MULTILINE))
    if inspect.isclass(value) and issubclass(value, timm_accel.LoopTrainer):  # its signature has all
        value = vars(value)["__init__"]
    accepted = set(inspect.signature(value).parameters) - {"self", "args", "kwargs", "unknown"}
    assert documented == accepted, name

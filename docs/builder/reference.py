"""The reference: a page for each public module, made from its ``__all__`` and the docstrings.

A public module is the package, or one of its direct modules that has an ``__all__``. A name that several of them export
is documented once, where it is defined closest.
"""

import inspect
import pkgutil
import re
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import timm_accel
from timm_accel.callbacks import DEFAULT_CALLBACKS
from timm_accel.commands.main import COMMANDS

GATEWAY = "timm_accel.upstream"  # its names are those of pytorch-accelerated
COMMAND_HOME = "timm_accel.commands"


@cache
def public_modules() -> dict[str, ModuleType]:
    """Return the public modules by name, the package first."""
    below = [f"timm_accel.{found.name}" for found in pkgutil.iter_modules(timm_accel.__path__) if found.name[0] != "_"]
    modules = {name: import_module(name) for name in ["timm_accel", *below] if name != GATEWAY}
    return {name: module for name, module in modules.items() if hasattr(module, "__all__")}


@cache
def public_names() -> dict[str, dict[str, str]]:
    """Return the names of each public module, each with the full name that the reference documents it by."""
    homes = {}
    for name, module in reversed(public_modules().items()):  # the package last, which exports again
        for public in module.__all__:
            homes.setdefault(public, f"{name}.{public}")
    found = {name: {public: homes[public] for public in module.__all__} for name, module in public_modules().items()}
    commands = [command.replace("-", "_") for command in COMMANDS]
    found[COMMAND_HOME] = {name: f"{COMMAND_HOME}.{name}.{name}" for name in commands}
    return found


def full_names() -> dict[str, str]:
    """Return the full names of all public names but those of commands, for links from docstrings."""
    modules = [names for module, names in public_names().items() if module != COMMAND_HOME]
    return {name: home for names in modules for name, home in names.items()}


def reference_pages() -> dict[str, str]:
    """Return the pages by their names on the site, as reStructuredText."""
    names = [f"reference/{module}" for module in sorted(public_names())]
    entries = "\n".join(f"   /{name}" for name in names)
    tree = f".. toctree::\n   :maxdepth: 2\n\n{entries}\n"
    index = f"{_title('Reference')}Every public name, from the docstrings; :ref:`by letter <genindex>`.\n\n{tree}"
    return {"reference/index": index, **{f"reference/{module}": _page(module) for module in public_names()}}


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def _page(module: str) -> str:
    names = public_names()[module]
    own = {name: home for name, home in names.items() if home.removeprefix(f"{module}.") in (name, f"{name}.{name}")}
    parts = [_title(module), f".. automodule:: {module}\n   :no-members:\n\n"]
    others = [f"* :py:obj:`{name} <{home}>`\n" for name, home in sorted(names.items()) if name not in own]
    if others:
        parts += ["Also here, from other modules:\n\n", *others, "\n"]
    for home in sorted(own.values(), key=lambda home: home.lower()):
        parts.append(_directive(home))
    return "".join(parts)


def _directive(home: str) -> str:
    module, _, name = home.rpartition(".")
    value = getattr(import_module(module), name)
    if inspect.isclass(value):
        return f".. autoclass:: {home}\n   :members:\n\n"
    if inspect.isfunction(value):
        return f".. autofunction:: {home}\n\n"
    return f".. autodata:: {home}\n\n"


def as_restructured(lines: list[str]) -> list[str]:
    """Return the lines of a docstring, which marks code as Markdown does, as reStructuredText."""
    names = full_names()

    def marked(found: re.Match[str]) -> str:
        home = names.get(found[1])
        return f":py:obj:`{found[1]} <{home}>`" if home else f"``{found[1]}``"

    result, fence = [], None
    for line in lines:
        opening = re.match(r"( *)```(\w*)$", line)
        if opening and fence is None:
            fence = opening[1]
            result += [f"{fence}.. code-block:: {opening[2] or 'text'}", ""]
        elif opening:
            fence = None
            result.append("")
        elif fence is not None:
            result.append(f"   {line}")
        else:
            line = re.sub(r"(?<![`:\w])`([^`<>]+)`(?!`)", marked, line)
            result.append(re.sub(r"(?<![`\w.])(\w+)_(?= )", r"\1\\_", line))  # else it would be the name of a link
    return result


def _docs_of_constant(name: str) -> list[str]:
    """Return the docstring of a constant: the string below it, in the module that defines it."""
    from sphinx.pycode import ModuleAnalyzer

    package, _, constant = name.rpartition(".")
    for module in [each for each in sys.modules if each.startswith(f"{package}.")]:
        found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", constant))
        if found:
            return found
    raise LookupError(f"Expected a docstring below the constant {name}, but found none.")


def process_docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Let autodoc read a docstring as `as_restructured` gives it."""
    lines[:] = as_restructured(_docs_of_constant(name) if what == "data" else lines)


def process_signature(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Let autodoc show the names of defaults whose repr is no code: classes, functions, factories of a dataclass."""
    if signature is not None:
        signature = signature.replace(repr(DEFAULT_CALLBACKS), "DEFAULT_CALLBACKS").replace("<factory>", "...")
        signature = re.sub(r"<(?:class|function) '?(?:\w+\.)*(\w+)[^>]*>", r"\1", signature)
    return signature, returns

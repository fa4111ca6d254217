"""The package stays one in which a newcomer finds things: small modules, small folders, one home for a name."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "timm_accel"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
GATEWAY = "timm_accel.upstream"  # the one module that others import upstream's names from


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


def imports(module: str) -> Iterator[tuple[str, str]]:
    """The names that a module imports from modules of the package, wherever in it: (module, name)."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from ((node.module, alias.name) for alias in node.names)


def imported(module: str) -> set[str]:
    """The names at the top of a module that are defined elsewhere."""
    nodes = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.ImportFrom | ast.Import)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def room(module: str) -> str:
    return module if is_package(module) else module.rpartition(".")[0]


def exports(package: str, name: str) -> bool:
    """Whether a package takes a name from below itself."""
    return any(found == name and source.startswith(f"{package}.") for source, found in imports(package))


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 100
    assert ("timm_accel.atomic", "atomic_write") in imports("timm_accel.model_soup")


def test_a_module_has_at_most_320_lines() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert lengths.pop("timm_accel.training.trainer") < 560  # one class between a mixin and upstream's trainer
    assert lengths.pop("timm_accel.recipes.recipe") < 400  # one field and its sentence for each option
    assert {name: length for name, length in lengths.items() if length > 320} == {}


def test_a_folder_has_at_most_16_modules() -> None:
    counts = Counter(str(path.parent.relative_to(PACKAGE)) for path in MODULES.values())
    assert {name: count for name, count in counts.items() if count > 16} == {}


def test_a_name_is_imported_from_where_it_is_defined_or_from_a_package_around_it() -> None:
    strays = [
        f"{module}: {source}.{name}"
        for module in MODULES
        for source, name in imports(module)
        if source != GATEWAY and f"{source}.{name}" not in MODULES and name in imported(source)
        if not (is_package(source) and exports(source, name))
    ]
    assert strays == []


def test_a_package_exports_what_is_defined_below_it() -> None:
    packages = [name for name in MODULES if is_package(name)]
    strays = [
        f"{package}: {source}.{name}"
        for package in packages
        for source, name in imports(package)
        if not source.startswith(f"{package}.")
    ]
    assert strays == []


def test_a_private_name_stays_in_its_folder() -> None:
    strays = [
        f"{module}: {source}.{name}"
        for module in MODULES
        for source, name in imports(module)
        if name.startswith("_") and room(source) != room(module)
    ]
    assert strays == []

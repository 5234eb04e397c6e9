"""Imports point one way, package by package, and the light ones stay light."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache

import pytest

from tests.conftest import REPOSITORY

# A package, or a module of the top level, imports only those that stand before it.
ORDER = ["errors", "files", "schema", "recipe", "data", "grading", "stats", "runs", "kernels", "model", "rl", "ui"]
ORDER += ["prepare", "grade", "probe", "evaluate", "train", "chat", "export", "cli"]
LIGHT = ["errors", "files", "schema", "recipe", "data", "grading", "stats", "runs", "ui", "prepare", "grade", "cli"]
MOST_FLOORS = 11
PACKAGE = REPOSITORY / "scorefast"
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


def imports(tree: ast.AST, everywhere: bool) -> set[str]:
    """Modules imported at the top level (or `everywhere`), leaving out what is for the type checker only."""
    nodes = ast.walk(tree) if everywhere else iter(tree.body)  # type: ignore[attr-defined]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def own_imports(name: str, types: bool = False) -> frozenset[str]:
    """The modules of scorefast that a module imports as it is imported itself; with `types`, for mypy too."""
    used, top = set(), ast.parse(FILES[name].read_text(encoding="utf-8")).body
    checked = [inner for node in top if isinstance(node, ast.If) for inner in node.body] if types else []
    for node in (*top, *checked):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scorefast"):
            for path in (f"{node.module}.{alias.name}".removeprefix("scorefast.") for alias in node.names):
                used.add(path if path in FILES else path.rpartition(".")[0])
    return frozenset(used - {name, ""})


@cache
def floor(name: str, types: bool = False, above: tuple[str, ...] = ()) -> int:
    assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
    return 1 + max((floor(other, types, (*above, name)) for other in own_imports(name, types)), default=0)


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_packages_that_stand_before_its_own(name):
    top = name.split(".")[0]
    if top in ("__init__", "__main__", "assets"):
        return
    allowed = {*ORDER[: ORDER.index(top) + 1]}
    assert {other.split(".")[0] for other in own_imports(name, types=True)} <= allowed


def test_there_is_no_circle_and_the_house_has_few_floors():
    assert max(floor(name) for name in FILES) <= MOST_FLOORS
    assert max(floor(name, types=True) for name in FILES) < len(FILES)  # imports for types make no circle either


def test_every_package_is_installed():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f"scorefast.{path.parent.name}" for path in PACKAGE.glob("*/*.py")}
    assert {*settings["packages"]} == {"scorefast", "scorefast.recipes", *folders}


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] in LIGHT])
def test_light_modules_import_no_torch(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    top = {m.split(".")[0] for m in imports(tree, everywhere=False)}
    assert not top & {"torch", "transformers", "peft", "datasets", "unsloth"}


def test_kernels_stand_on_torch_and_triton_alone():
    for file in (PACKAGE / "kernels").glob("*.py"):
        used = {m.split(".")[0] for m in imports(ast.parse(file.read_text(encoding="utf-8")), everywhere=True)}
        assert used - sys.stdlib_module_names <= {"torch", "triton", "scorefast"}, file.name


def test_one_module_each_knows_the_backends():
    homes = {"model.backends": {"unsloth"}, "model.adapters": {"unsloth", "peft"}, "model.four_bit": {"bitsandbytes"}}
    for name, file in FILES.items():
        used = {m.split(".")[0] for m in imports(ast.parse(file.read_text(encoding="utf-8")), everywhere=True)}
        assert used & {"unsloth", "peft", "bitsandbytes"} <= homes.get(name, set()), name


def longest(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> dict[str, int]:
    """Lines of each function or class of the package, by where it stands."""
    return {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]
        for name, file in FILES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, kind)
    }


def test_no_module_function_or_class_is_long():
    modules = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    functions = longest((ast.FunctionDef, ast.AsyncFunctionDef))
    sizes = ((modules, 450), (functions, 60), (longest(ast.ClassDef), 200))
    assert {name: size for found, most in sizes for name, size in found.items() if size > most} == {}


def test_the_tests_that_the_security_page_names_are_there():
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    tests = {file.name: file.read_text(encoding="utf-8") for file in (REPOSITORY / "tests").glob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", page)
    assert sum(bool(test) for _, test in named) > 30
    file = ""
    for other, test in named:
        file = other or file
        assert f"def {test}(" in tests[file] if test else file in tests, (file, test)

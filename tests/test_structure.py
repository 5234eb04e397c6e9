"""Imports point one way, and the light modules stay light."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from tests.conftest import REPOSITORY

# Each module may import those before it (and kernels) only.
ORDER = [
    "untrusted",
    "tokenizer_trial",
    "surroundings",
    "durable",
    "thoughts",
    "prompts",
    "recipe",
    "ownership",
    "sources",
    "duplicates",
    "presets",
    "data",
    "numbers",
    "answers",
    "stated",
    "vocabulary",
    "words",
    "statements",
    "keys",
    "texts",
    "math_worker",
    "formulas",
    "letters",
    "grading",
    "reward",
    "metrics",
    "monitor",
    "runs",
]
ORDER += ["settings", "report", "prepare", "kernels", "objective", "rollout", "four_bit", "plain_model", "model"]
ORDER += ["memory", "evaluate", "schedule", "optimizers", "trainer", "stages", "chat", "export", "cli"]
LIGHT = {*ORDER[: ORDER.index("kernels")], "cli"}
PACKAGE = REPOSITORY / "scorefast"


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


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_stands_before_it(name):
    files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else list((PACKAGE / name).glob("*.py"))
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        used = {m.split(".")[1] for m in imports(tree, everywhere=False) if m.startswith("scorefast.")}
        allowed = set(ORDER[: ORDER.index(name)]) | {name, "__version__"}
        assert used <= allowed, f"{file.name} imports {used - allowed}"


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_modules_import_no_torch(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    top = {m.split(".")[0] for m in imports(tree, everywhere=False)}
    assert not top & {"torch", "transformers", "peft", "datasets", "unsloth"}


def test_kernels_stand_on_torch_and_triton_alone():
    for file in (PACKAGE / "kernels").glob("*.py"):
        used = {m.split(".")[0] for m in imports(ast.parse(file.read_text(encoding="utf-8")), everywhere=True)}
        assert used - sys.stdlib_module_names <= {"torch", "triton", "scorefast"}, file.name


def test_one_module_each_knows_the_backends():
    homes = {"model.py": {"unsloth", "peft"}, "four_bit.py": {"bitsandbytes"}}
    for file in PACKAGE.rglob("*.py"):
        used = {m.split(".")[0] for m in imports(ast.parse(file.read_text(encoding="utf-8")), everywhere=True)}
        assert used & {"unsloth", "peft", "bitsandbytes"} <= homes.get(file.name, set()), file.name


def test_the_tests_that_the_security_page_names_are_there():
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    tests = {file.name: file.read_text(encoding="utf-8") for file in (REPOSITORY / "tests").glob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", page)
    assert sum(bool(test) for _, test in named) > 30
    file = ""
    for other, test in named:
        file = other or file
        assert f"def {test}(" in tests[file] if test else file in tests, (file, test)

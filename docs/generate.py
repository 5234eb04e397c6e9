"""Write the reference pages that are made from the code.

    python docs/generate.py            # write them
    python docs/generate.py --check    # exit with 1 where one is not what the code says

A page is a function without arguments that returns its text; PAGES names the file that it is written to.
"""

from __future__ import annotations

import html
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
import yaml
from typer.cli import get_docs_for_click
from typer.main import get_command

from scorefast import cli
from scorefast.recipe import MOST_BASES
from scorefast.schema import Recipe, Stage

ROOT = Path(__file__).resolve().parent.parent
WIDTH, COMMENTS_AT = 110, 32  # columns of a line of YAML, and where a comment beside a value begins

# --- the schema of a recipe ------------------------------------------------------------------------------------------

Schema = dict[str, Any]  # JSON Schema of a key or a group of keys
SCHEMA: Schema = Recipe.model_json_schema()


def keys_of(group: Schema) -> dict[str, Schema] | None:
    """The keys of a group, in the order of the schema; None of what is a value."""
    if "$ref" in group:
        group = SCHEMA["$defs"][group["$ref"].rpartition("/")[2]]
    return group.get("properties")


def as_yaml(value: Any) -> str:
    """On one line."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()


def allowed(key: Schema) -> str:
    """The type of a value and its bounds, in words."""
    if "anyOf" in key:
        return " or ".join(allowed(each) for each in key["anyOf"])
    if "enum" in key or "const" in key:
        return ", ".join(f"`{value}`" for value in key.get("enum", [key.get("const")]))
    kind = key["type"]
    if kind == "array":
        items = key.get("prefixItems")
        return f"list of {len(items)} texts" if items else "list of texts"
    if kind == "object":
        return f"mapping of names to {allowed(key['additionalProperties'])}"
    if kind == "string":
        return "text, not empty" if key.get("minLength") else "text"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {as_yaml(key[name])}" for name, sign in signs.items() if name in key]
    return f"{kind} {', '.join(bounds)}".strip()


# --- recipes/reference.yaml ------------------------------------------------------------------------------------------

REFERENCE_HEAD = """\
# Every key of a recipe with its default. Generated from the schema by `python docs/generate.py`: do not edit it.
#
# A recipe states only what differs from these defaults, or from another recipe:
#
#   extends: gemma-2-2b-it  # the name of a shipped recipe, or the path of a .yaml file from this one
#   stage2:
#     alpha: 5
#
# docs/recipe.md has the rules, and the bounds of each value.
"""


def reference_recipe() -> str:
    return REFERENCE_HEAD + "".join(_commented(keys_of(SCHEMA) or {}, Recipe().model_dump(mode="json"), ""))


def _commented(keys: dict[str, Schema], defaults: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, key in keys.items():
        inner = keys_of(key)
        if not indent:
            lines.append("\n")
        if inner is not None:
            lines += [*_above(key["description"], indent), f"{indent}{name}:\n"]
            lines += _commented(inner, defaults[name], indent + "  ")
            continue
        choices = " | ".join(key.get("enum", []))
        comment = f"{choices}: {key['description']}" if choices else key["description"]
        value = textwrap.indent(yaml.safe_dump({name: defaults[name]}, width=WIDTH - 10, allow_unicode=True), indent)
        beside = f"{value.rstrip():<{COMMENTS_AT - 2}}  # {comment}\n"
        fits = value.count("\n") == 1 and len(beside) <= WIDTH + 1
        lines += [beside] if fits else [*_above(comment, indent), value]
    return lines


def _above(comment: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return [f"{line}\n" for line in textwrap.wrap(comment, WIDTH, initial_indent=start, subsequent_indent=start)]


# --- docs/recipe.md --------------------------------------------------------------------------------------------------

RECIPE_HEAD = f"""\
# Recipe reference

<!-- Generated from the schema by `python docs/generate.py`: do not edit it. -->

A recipe is a YAML file. It states the values that differ from the defaults below, or from another recipe:

```yaml
extends: gemma-2-2b-it
stage2:
  alpha: 5
```

Values come from these layers; each overrides the ones before it:

1. the defaults below,
2. the recipe that `extends` names, and the ones that it extends in turn,
3. the recipe file that `--recipe` names,
4. `--set key=value`,
5. other options of the command, such as `--seed`.

Rules for `extends`:

- It takes the name of a shipped recipe, or the path of a `.yaml` file relative to the file that extends it.
- Mappings merge key by key, including `data.columns`, `prompt.options` and `stage2.origin`. A key of a base can be
  overridden and cannot be removed.
- Lists and scalars replace the value of the base. `null` sets null.
- A chain has at most {MOST_BASES} bases and no circle.
- A run saves its recipe whole, with every key. `extends` is refused in the recipe of a run or a checkpoint.

[`recipes/reference.yaml`](../recipes/reference.yaml) has every key with its default and is a file to copy from.
`stage1` and `stage2` print the resolved recipe with `--dry-run`.
"""


def recipe_page() -> str:
    groups, single = {}, {}
    for name, key in (keys_of(SCHEMA) or {}).items():
        inner = keys_of(key)
        (single if inner is None else groups)[name] = key
    page = [RECIPE_HEAD, "\n## Top level\n", *_table(single, Recipe().model_dump(mode="json"))]
    for name, key in groups.items():
        page += _section(name, key)
    return "".join(page)


def _section(name: str, group: Schema) -> list[str]:
    """A heading, a table of the values, then the groups inside. What the stages share stands under stage1 alone."""
    keys, defaults = keys_of(group) or {}, _default(name)
    values = {key: of for key, of in keys.items() if keys_of(of) is None}
    shared = {key: of for key, of in values.items() if key in Stage.model_fields and name.startswith("stage")}
    lines = [f"\n## {name}\n\n{group['description']}\n"]
    if shared and name == "stage1":
        lines += ["\n`stage1` and `stage2` share these keys and their defaults:\n", *_table(shared, defaults)]
        lines += ["\n`stage1` alone has:\n"]
    elif shared:
        lines += ["\nBesides the keys that it shares with [`stage1`](#stage1), `stage2` has:\n"]
    lines += _table({key: of for key, of in values.items() if key not in shared}, defaults)
    for key, of in keys.items():
        if key not in values:
            lines += _section(f"{name}.{key}", of)
    return lines


def _default(path: str) -> Any:
    value: Any = Recipe().model_dump(mode="json")
    for name in path.split("."):
        value = value[name]
    return value


def _table(keys: dict[str, Schema], defaults: dict[str, Any]) -> list[str]:
    rows = [
        f"| `{name}` | {allowed(key)} | `{as_yaml(defaults[name])}` | {key['description']} |\n"
        for name, key in keys.items()
    ]
    return ["\n| key | value | default | description |\n|---|---|---|---|\n", *rows]


# --- docs/cli.md -----------------------------------------------------------------------------------------------------

NOTICE = "<!-- Generated from the commands by `python docs/generate.py`: do not edit it. -->\n"


def cli_page() -> str:
    """Every command with its arguments, options and defaults, as Typer documents them, and the exit codes."""
    command = get_command(cli.app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="scorefast", title="Commands")
    page = re.sub(r"^\* (`\w+`): .*\.\.\.$", r"* \1", html.unescape(page), flags=re.MULTILINE)  # cut-off summaries
    codes = re.search(r"Exit codes: (.+)", cli.main.__doc__ or "")
    assert codes, "the docstring of the command line says what its exit codes are"
    return f"{NOTICE}\n{page.rstrip()}\n\n## Exit codes\n\n{codes[1]}\n"


# --- all pages -------------------------------------------------------------------------------------------------------

PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "recipes" / "reference.yaml": reference_recipe,
    ROOT / "docs" / "recipe.md": recipe_page,
    ROOT / "docs" / "cli.md": cli_page,
}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = [p for p, page in PAGES.items() if not p.is_file() or p.read_bytes() != page().encode()]
    for path in stale:
        if not arguments:
            path.write_bytes(PAGES[path]().encode())
        print(f"{path.relative_to(ROOT)}: {'differs; run python docs/generate.py' if arguments else 'written'}")
    return int(bool(stale and arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

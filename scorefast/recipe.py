"""Load a recipe file with the files it extends and `--set key=value` overrides, validate it, and dump it.

Precedence: defaults of the schema < files named by `extends` < the recipe file < `--set` < command-line flags.
`recipes/reference.yaml` has every key. Imports no torch.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from scorefast.errors import UserError
from scorefast.files.bounded import JsonObject, read_text
from scorefast.files.bounded_yaml import LARGEST_RECIPE, parse_yaml
from scorefast.files.text import shortened
from scorefast.schema import Recipe

PACKAGE = Path(__file__).parent
EMBEDDED_MODELS = {name: PACKAGE / "assets" / name for name in ("tiny-gemma2", "tiny-gemma2-products")}
EXTENDS = "extends"  # the key that names the base of a recipe file
REFERENCE = "reference"  # the shipped file of every key; it loads by name, but is not listed for training
MOST_BASES = 5  # longest chain of bases

Tree = dict[object, object]  # nested mappings of a YAML file
Layer = tuple[Path, Tree]  # a recipe file and its keys

# {relative name in a run's recipe: folder recorded in its run.json}; `find_base` fills it.
RECORDED_FOLDERS: dict[str, str] = {}


def model_path(name: str) -> str:
    """The folder of an embedded or recorded model; any other name (a folder or a hub id) unchanged."""
    return str(EMBEDDED_MODELS.get(name) or RECORDED_FOLDERS.get(name, name))


def may_be_of_the_hub(name: str) -> bool:
    """Whether `name` is a valid hub id, so that a folder of the same name would hide a hub model."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None


def recipe_folder() -> Path:
    """`scorefast/recipes` in an installed wheel, `recipes` beside the package in a checkout."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes for training."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml") if path.stem != REFERENCE)


def load_recipe(source: str, overrides: list[str] | None = None, *, saved: bool = False) -> Recipe:
    """Load a recipe by file or shipped name, with `key.path=value` overrides whose values are YAML.

    A file with `extends: NAME` has only the keys that differ from its base: a shipped recipe, or a .yaml file relative
    to this one. Mappings merge key by key, including data.columns, prompt.options and stage2.origin; lists, scalars and
    null replace. saved: the file was saved by a run or a checkpoint and has every key. `extends` is then refused, since
    an untrusted folder must not read files from other places.

    Raises UserError naming the file and the key, with the nearest known key if it is unknown.
    """
    layers = _layers(source, saved)
    tree: Tree = {}
    for _, layer in layers:
        tree = _merged(tree, layer)
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        overridden = {override.partition("=")[0].strip() for override in overrides or []}
        raise _refusal(error, layers, overridden) from None


def _layers(source: str, saved: bool) -> list[Layer]:
    """The recipe file and its bases, the end of the chain first, each without the key `extends`."""
    path = _path_of(source, Path())
    try:
        layers = [(path, _read(path))]
    except UserError as error:
        raise UserError(f"recipe {error}") from None
    while EXTENDS in layers[0][1]:
        path, tree = layers[0]
        base = tree.pop(EXTENDS)
        try:
            if saved:
                raise UserError("not allowed in the folder of a run or a checkpoint; write the keys into the file")
            if not isinstance(base, str):
                raise UserError(f"expected the name of a shipped recipe or the path of a .yaml file{_given(base)}")
            base_path = _path_of(base, path.parent)
            _require_short_chain([p for p, _ in reversed(layers)], base_path)
            layers.insert(0, (base_path, _read(base_path)))
        except (UserError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
            raise UserError(f"recipe {path}: {EXTENDS}: {error}") from None
    return layers


def _path_of(name: str, folder: Path) -> Path:
    """The path of a shipped recipe, or of a .yaml file relative to `folder`."""
    if name.endswith((".yaml", ".yml")):
        return folder / name
    if name not in {*shipped_recipes(), REFERENCE}:
        known = ", ".join(shipped_recipes())
        raise UserError(f"no recipe {shortened(repr(name), 100)}: give a .yaml file or one of {known}")
    return recipe_folder() / f"{name}.yaml"


def _require_short_chain(files: list[Path], base: Path) -> None:
    chain = " -> ".join(shortened(str(file), 100) for file in [*files, base])
    if os.path.realpath(base) in map(os.path.realpath, files):
        raise UserError(f"circular: {chain}")
    if len(files) > MOST_BASES:
        raise UserError(f"a chain of more than {MOST_BASES} bases: {chain}")


def _read(path: Path) -> Tree:
    try:
        tree = parse_yaml(read_text(path, LARGEST_RECIPE))
    except OSError as error:  # a name too long, a folder without permission
        raise UserError(f"{shortened(str(path))}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys such as 'model:' and 'stage1:', found none")
    return tree


def _merged(below: Tree, above: Tree) -> Tree:
    """`below` updated with `above`, as a new tree. It shares no mapping, so YAML aliases can be overridden apart."""
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, dict):
            value = _merged(kept if isinstance(kept := merged.get(name), dict) else {}, value)
        merged[name] = value
    return merged


def _refusal(error: ValidationError, layers: list[Layer], overridden: set[str]) -> UserError:
    """The error for a key, naming `--set` or the file of highest precedence that sets the key."""
    problem = error.errors()[0]
    whole = ".".join(map(str, problem["loc"]))
    key = shortened(whole, 100) or "(whole recipe)"
    file, _ = max(reversed(layers), key=lambda layer: _depth(layer[1], problem["loc"]))
    related = (whole == o or whole.startswith(f"{o}.") or o.startswith(f"{whole}.") for o in overridden)
    where = "--set" if any(related) else f"recipe {file}:"
    if problem["type"] == "extra_forbidden":
        known = known_keys() if where == "--set" else [*known_keys(), EXTENDS]
        return UserError(f"{where} unknown key {key!r}{_nearest(key, known)}")
    given = "" if isinstance(problem["input"], dict | BaseModel) else _given(problem["input"])
    return UserError(f"{where} {key}: {problem['msg'].removeprefix('Value error, ')}{given}")


def _given(value: object) -> str:
    """` (given: ...)` with an abbreviated repr: the full repr of nested YAML aliases can exhaust memory."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    return f" (given: {shortened(short.repr(value), 100)})"


def _depth(tree: object, key: tuple[int | str, ...]) -> int:
    """How many leading parts of the key are in the tree."""
    return 1 + _depth(tree[key[0]], key[1:]) if key and isinstance(tree, dict) and key[0] in tree else 0


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back as the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def flat(recipe: Recipe) -> JsonObject:
    """{"stage2.alpha": 10.0, ...}"""

    def leaves(node: JsonObject, prefix: str) -> JsonObject:
        found: JsonObject = {}
        for name, value in node.items():
            found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    return leaves(recipe.model_dump(mode="json"), "")


def _apply(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {shortened(override, 100)}: expected key=value, for example --set stage2.alpha=5")
    *parents, leaf = key.strip().split(".")
    if not parents and leaf == EXTENDS:
        raise UserError(f"--set {EXTENDS}: only a recipe file can extend another; name it with --recipe")
    node = tree
    for depth, name in enumerate(parents, 1):
        below = node.setdefault(name, {})
        if not isinstance(below, dict) or not _may_be_group(".".join(parents[:depth])):
            raise UserError(f"--set {shortened(key, 100)}: {name!r} is a value, not a group of keys")
        node = below
    try:
        value = parse_yaml(text)  # YAML 1.1 reads 2e-4 as a string; pydantic converts it
    except ValueError as error:
        if not _is_text(key.strip()):
            message = f"--set {shortened(key, 100)}: {shortened(text, 100)!r} is not a YAML value: {error}"
            raise UserError(message) from None
        value = text
    node[leaf] = value if isinstance(value, str | None) or not _is_text(key.strip()) else text


def _is_text(key: str) -> bool:
    """Whether a key takes text, so that `--set prompt.system=Note: be brief` is not parsed as YAML."""
    kind = _annotation(key)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return str in {get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds}


def _may_be_group(key: str) -> bool:
    """Whether a key can have keys below it. True for an unknown key, which validation refuses later."""
    kind = _annotation(key)
    return kind is None or hasattr(kind, "model_fields") or get_origin(kind) is dict


def _annotation(key: str) -> object:
    """The type of a recipe's key; None if the key is unknown."""
    model: object = Recipe
    for name in key.split("."):
        field = getattr(model, "model_fields", {}).get(name)
        if field is None:
            return None
        model = field.annotation
    return model


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""

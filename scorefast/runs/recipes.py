"""Which recipe a command runs with: a file's, a checkpoint's, a run's own, or the one for this machine, as flags change
it; and what a folder of somebody else's may not choose. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from scorefast.errors import UserError
from scorefast.recipe import EMBEDDED_MODELS, load_recipe, may_be_of_the_hub, model_path
from scorefast.runs.checkpoint import Checkpoint, find_base
from scorefast.runs.layout import RECIPE
from scorefast.runs.resume import changes_allowed
from scorefast.schema import Recipe

Note = Callable[[str], None]


def chosen_recipe(source: str, overrides: list[str], start: Checkpoint | None, note: Note, rewards: bool) -> Recipe:
    """The named recipe; `auto` is the recipe of the checkpoint that is given, else the one that fits this machine.

    rewards: whether the command calls the reward function, which a folder of somebody else's must not choose.
    """
    if source == "auto" and start is not None and start.recipe is not None:
        note(f"recipe: that of {start.path}")
        recipe = load_recipe(str(start.path / RECIPE), overrides, saved=True)
        if rewards:
            _require_named_by_the_user(start.path, recipe, overrides)
            recipe = _reports_nowhere_else(start.path, recipe, overrides, note)
    else:
        source = recipe_for_this_machine() if source == "auto" else source
        note(f"recipe: {source}")
        recipe = load_recipe(source, overrides)
    return _with_its_model(recipe)


def resumed_recipe(run: Path, stage: str, source: str, overrides: list[str], note: Note) -> Recipe:
    """The run's own recipe, or what the flags make of it where nothing changes that must not."""
    began = load_recipe(str(run / RECIPE), saved=True)
    if source == "auto":
        wanted = load_recipe(str(run / RECIPE), overrides, saved=True)
        _require_named_by_the_user(run, wanted, overrides)
        note(f"recipe: that of {run}")
    else:
        wanted = load_recipe(source, overrides)
    for key, (before, after) in changes_allowed(run, stage, began, wanted).items():
        note(f"{key}: {before!r} so far, {after!r} from here on")
    find_base(run, wanted.model.name)
    return _with_its_model(wanted)


def recipe_for_this_machine() -> str:
    if find_spec("unsloth") is None:
        return "tiny-cpu"
    import torch

    return "gemma-2-2b-it" if torch.cuda.is_available() else "tiny-cpu"


def _require_named_by_the_user(folder: Path, inherited: Recipe, overrides: list[str]) -> None:
    """Raises UserError where a folder's own recipe names a reward function, and no flag does: the folder may be
    somebody else's, and importing a module runs it."""
    function = inherited.reward.function
    if function is not None and not _keys(overrides) & {"reward", "reward.function"}:
        raise UserError(
            f"{folder}: its recipe names code to run, reward.function = {function!r}; if you want that, say so: "
            f"--reward {shlex.quote(function)}"
        )


def _reports_nowhere_else(folder: Path, inherited: Recipe, overrides: list[str], note: Note) -> Recipe:
    """Metrics go to no service that only a folder names."""
    if inherited.report_to == "none" or "report_to" in _keys(overrides):
        return inherited
    note(f"report_to: {inherited.report_to!r}, as in {folder}, is not taken over; --set report_to=... if you want it")
    return inherited.model_copy(update={"report_to": "none"})


def _keys(overrides: list[str]) -> set[str]:
    return {text.partition("=")[0].strip() for text in overrides}


def _with_its_model(recipe: Recipe) -> Recipe:
    """Raises UserError where model.name is the path of a folder that is not there, or of one that holds no model; other
    names are asked of the hub."""
    name = recipe.model.name
    path = Path(model_path(name))
    if path.is_dir() and not (path / "config.json").is_file():
        hides = " and hides the hub's model of that name: rename it, or" if may_be_of_the_hub(name) else ":"
        raise UserError(
            f"model.name: {name}: the folder {path.absolute()} has no config.json{hides} name a model's folder"
        )
    is_path = name.startswith((".", "~")) or name.count("/") > 1 or path.is_absolute()
    if is_path and not path.is_dir():
        sought = "" if path.is_absolute() else f" at {path.absolute()}"
        raise UserError(f"model.name: {name}: no such folder{sought} (a recipe may begin with how to make it)")
    return recipe


def where_the_model_is(name: str) -> str | None:
    """A line for those whose model may be another than they think; None for one that is embedded or a plain path."""
    path = model_path(name)
    if not Path(path).is_dir():
        return f"model: {name}, from the Hugging Face hub or its cache"
    if name in EMBEDDED_MODELS:
        return (
            f"model: {name}, the embedded one, not the folder {Path(name).absolute()}" if Path(name).is_dir() else None
        )
    if path != name:
        return f"model: {name}, the folder {path}, where its run had it"
    hidden = ", not the hub's model of that name"
    return f"model: {name}, the folder {Path(name).absolute()}{hidden}" if may_be_of_the_hub(name) else None

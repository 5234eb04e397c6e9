"""Choose the recipe of a command: a named one, a checkpoint's, the run's own, or the default of this machine.

A checkpoint from elsewhere must not choose which code runs, or where metrics are sent. Imports no torch.
"""

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
    """The named recipe. `auto` is the recipe of the checkpoint `start`, else the default of this machine.

    rewards: whether the command calls the reward function. The user must then name a function that only the
    checkpoint's recipe names.
    """
    if source == "auto" and start is not None and start.recipe is not None:
        note(f"recipe: from {start.path}")
        recipe = load_recipe(str(start.path / RECIPE), overrides, saved=True)
        if rewards:
            _require_named_by_the_user(start.path, recipe, overrides)
            recipe = _without_reporting(start.path, recipe, overrides, note)
    else:
        default = source == "auto"
        source = recipe_for_this_machine() if default else source
        why = " (no CUDA with Unsloth here; its model only adds numbers)" if default and source == "tiny-cpu" else ""
        note(f"recipe: {source}{why}")
        recipe = load_recipe(source, overrides)
    return _require_model(recipe)


def resumed_recipe(run: Path, stage: str, source: str, overrides: list[str], note: Note) -> Recipe:
    """The run's own recipe with the user's changes. Raises UserError naming a key that must not change in a run."""
    began = load_recipe(str(run / RECIPE), saved=True)
    if source == "auto":
        wanted = load_recipe(str(run / RECIPE), overrides, saved=True)
        _require_named_by_the_user(run, wanted, overrides)
        note(f"recipe: from {run}")
    else:
        wanted = load_recipe(source, overrides)
    for key, (before, after) in changes_allowed(run, stage, began, wanted).items():
        note(f"{key}: {before!r} until now, {after!r} from here on")
    find_base(run, wanted.model.name)
    return _require_model(wanted)


def recipe_for_this_machine() -> str:
    """gemma-2-2b-it with CUDA and Unsloth, else tiny-cpu."""
    if find_spec("unsloth") is None:
        return "tiny-cpu"
    import torch

    return "gemma-2-2b-it" if torch.cuda.is_available() else "tiny-cpu"


def _require_named_by_the_user(folder: Path, inherited: Recipe, overrides: list[str]) -> None:
    """Raise UserError if the recipe in a folder names a reward function and no flag does. The folder may come from
    somebody else, and importing a module runs its code."""
    function = inherited.reward.function
    if function is not None and not _keys(overrides) & {"reward", "reward.function"}:
        raise UserError(
            f"{folder}: its recipe names code to run, reward.function = {function!r}; to allow it, add "
            f"--reward {shlex.quote(function)}"
        )


def _without_reporting(folder: Path, inherited: Recipe, overrides: list[str], note: Note) -> Recipe:
    """The recipe with report_to = none, unless the user has set report_to."""
    if inherited.report_to == "none" or "report_to" in _keys(overrides):
        return inherited
    note(f"report_to: {inherited.report_to!r} of {folder} is not used; to use it, add --set report_to=...")
    return inherited.model_copy(update={"report_to": "none"})


def _keys(overrides: list[str]) -> set[str]:
    return {text.partition("=")[0].strip() for text in overrides}


def _require_model(recipe: Recipe) -> Recipe:
    """The recipe, unchanged. Raises UserError if model.name is the path of a folder that is missing or holds no model.
    Any other name is looked up on the hub."""
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
        raise UserError(f"model.name: {name}: no such folder{sought}; the top of its recipe may say how to make it")
    return recipe


def model_location(name: str) -> str | None:
    """One line on which model a name refers to. None for an embedded model or a plain path, which is unambiguous."""
    path = model_path(name)
    if not Path(path).is_dir():
        return f"model: {name}, from the Hugging Face hub or its cache"
    if name in EMBEDDED_MODELS:
        return (
            f"model: {name}, the embedded one, not the folder {Path(name).absolute()}" if Path(name).is_dir() else None
        )
    if path != name:
        return f"model: {name}, the folder {path} that its run recorded"
    hidden = ", not the hub's model of that name"
    return f"model: {name}, the folder {Path(name).absolute()}{hidden}" if may_be_of_the_hub(name) else None

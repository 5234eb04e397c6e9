"""Checkpoints: opened, found, rotated, or refused in one line. Imports no torch."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path

from scorefast.errors import UserError
from scorefast.files.atomic import is_own_file
from scorefast.files.bounded import read_json
from scorefast.files.model_folder import require_sound_folder
from scorefast.files.seal import SEAL, damage, remove_folder
from scorefast.recipe import EMBEDDED_MODELS, RECORDED_FOLDERS, load_recipe, model_path
from scorefast.runs.layout import RECIPE, RUN, own_checkpoints, step_of
from scorefast.schema import Recipe

# What must be the same from one run to the next that starts from it: how questions are split, asked and graded.
TERMS = ("data.test_fraction", "data.validation_fraction", "prompt", "reward.grader")


@dataclass(frozen=True)
class Checkpoint:
    """A PEFT folder (is_adapter) or a model folder; recipe is None where scorefast did not write it."""

    name: str
    path: Path
    is_adapter: bool
    base: str
    recipe: Recipe | None


def open_checkpoint(text: str) -> Checkpoint:
    """A folder that scorefast wrote must be whole, byte for byte; of another's only the form is looked at.

    Raises UserError where the folder is no checkpoint, is damaged, or is a run that has none yet.
    """
    path = Path(text)
    if not path.is_dir():
        raise UserError(f"{text}: no such checkpoint folder")
    if (path / RECIPE).is_file() or (path / SEAL).exists():
        _require_whole(path)
    require_sound_folder(path)
    recipe = load_recipe(str(path / RECIPE), saved=True) if (path / RECIPE).is_file() else None
    if recipe is not None:
        find_base(path, recipe.model.name)
    name = f"{path.resolve().parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.resolve().name
    if (path / "adapter_config.json").is_file() and (path / "adapter_model.safetensors").is_file():
        base = recipe.model.name if recipe else read_json(path / "adapter_config.json").get("base_model_name_or_path")
        return Checkpoint(name, path, True, str(base), recipe)
    if (path / "config.json").is_file() and list(path.glob("model*.safetensors")):
        return Checkpoint(name, path, False, recipe.model.name if recipe else text, recipe)
    raise UserError(f"{text}: not a checkpoint (it has neither adapter_model.safetensors nor model.safetensors)")


def _require_whole(path: Path) -> None:
    wrong = damage(path)
    if wrong is None:
        return
    if not (path / RUN).is_file():
        raise UserError(f"{path}: not a whole checkpoint: {wrong}")
    last, _ = find_last(path)
    other = f", or use {last}" if last else ""
    if (path / SEAL).exists():
        raise UserError(f"{path}: not a whole checkpoint: {wrong}; --resume writes it anew{other}")
    raise UserError(f"{path}: this run has not finished; continue it with --resume{other}")


def find_base(folder: Path, name: str) -> None:
    """A run may name its model by a relative path: it is sought where run.json says that it lay, then here.

    Raises UserError where it was a folder and is in neither place, so that no model of the hub is taken for it.
    """
    run = folder / RUN if (folder / RUN).is_file() else folder.resolve().parent / RUN
    if name in EMBEDDED_MODELS or Path(name).is_absolute() or not run.is_file():
        return
    began = read_json(run)
    recorded = began.get("base")
    if isinstance(recorded, str) and Path(recorded).is_dir():
        if RECORDED_FOLDERS.setdefault(name, recorded) != recorded:
            raise UserError(f"{folder}: its model {name!r} is {recorded}, and not {RECORDED_FOLDERS[name]}")
    elif (recorded or began.get("base_sha256")) and not Path(name).is_dir():
        places = [*([str(recorded)] if recorded else []), str(Path(name).absolute())]
        raise UserError(
            f"{folder}: its model.name is {name!r}, a folder when it began; sought at {' and '.join(places)}, and not "
            "there; put it back, or go where that path leads to it"
        )


def require_same_terms(checkpoint: Checkpoint, recipe: Recipe, *, to_train: bool = False) -> None:
    """Raises UserError where the checkpoint's base is another, or its run split, asked or graded otherwise: a question
    it was trained on could then count as held out, and figures would not compare. To train it, the kind of tuning must
    be the same too."""
    theirs, ours = (Path(model_path(name)) for name in (checkpoint.base, recipe.model.name))
    if theirs != ours and not (theirs.is_dir() and ours.is_dir() and theirs.samefile(ours)):
        raise UserError(
            f"{checkpoint.path}: trained on {checkpoint.base!r}, but the recipe's model.name is {recipe.model.name!r}"
        )
    for key in TERMS if checkpoint.recipe else ():
        theirs, ours = (operator.attrgetter(key)(r) for r in (checkpoint.recipe, recipe))
        if theirs != ours:
            raise UserError(f"{checkpoint.path}: its run had {key} = {theirs!r}, the recipe in force says {ours!r}")
    if to_train and checkpoint.is_adapter != (recipe.model.tuning == "lora"):
        kind = "an adapter" if checkpoint.is_adapter else "a whole model"
        raise UserError(f"{checkpoint.path}: is {kind}, but model.tuning is {recipe.model.tuning}")


def find_last(run: Path) -> tuple[Path | None, list[str]]:
    """(the newest whole checkpoint-N, a line for each newer one that is damaged). Found by looking at every byte.

    Raises UserError where one cannot be read: that may pass, and is no reason to go on from an older one.
    """
    passed_over: list[str] = []
    for path in sorted(own_checkpoints(run), key=step_of, reverse=True):
        try:
            wrong = damage(path)
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; mend that, or remove the checkpoint") from None
        wrong = wrong or (None if (path / "trainer_state.json").is_file() else "it has no trainer_state.json")
        if wrong is None:
            return path, passed_over
        passed_over.append(f"{path} is passed over: {wrong}")
    return None, passed_over


def rotate(run: Path, keep: int, saved: Path) -> None:
    """Delete all but the newest `keep` checkpoints up to the one just saved. Newer ones are damaged: not counted. Nor
    is what has no seal, of which only an empty folder is removed."""
    older = sorted((p for p in own_checkpoints(run) if step_of(p) <= step_of(saved)), key=step_of)
    kept = [p for p in older if is_own_file(p / SEAL)][-keep:]
    for path in older:
        if path not in kept:
            remove_folder(path)

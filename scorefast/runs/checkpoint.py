"""Open, find and rotate checkpoints; refuse a damaged one in one line. Imports no torch."""

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

# Keys that a run must share with the checkpoint it starts from: how questions are split, asked and graded.
TERMS = ("data.test_fraction", "data.validation_fraction", "prompt", "reward.grader")


@dataclass(frozen=True)
class Checkpoint:
    """A PEFT folder (is_adapter) or a model folder. recipe is None if scorefast did not write the folder."""

    name: str
    path: Path
    is_adapter: bool
    base: str
    recipe: Recipe | None


def open_checkpoint(text: str) -> Checkpoint:
    """Open a checkpoint folder or the folder of a finished run.

    A folder that scorefast wrote is checked byte for byte against its seal. In any other folder only the file formats
    are checked. Raises UserError if the folder is not a checkpoint, is damaged, or is a run without a result.
    """
    path = Path(text)
    if not path.is_dir():
        raise UserError(f"{text}: no such checkpoint folder")
    if (path / RECIPE).is_file() or (path / SEAL).exists():
        _require_complete(path)
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


def _require_complete(path: Path) -> None:
    wrong = damage(path)
    if wrong is None:
        return
    if not (path / RUN).is_file():
        raise UserError(f"{path}: not a complete checkpoint: {wrong}")
    last, _ = find_last(path)
    other = f", or use {last}" if last else ""
    if (path / SEAL).exists():
        raise UserError(f"{path}: not a complete checkpoint: {wrong}; --resume rewrites it{other}")
    raise UserError(f"{path}: this run has not finished; continue it with --resume{other}")


def find_base(folder: Path, name: str) -> None:
    """Find a model folder that a run names by a relative path: at the path in run.json, else in the working directory.

    Raises UserError if the folder is in neither place. A hub model of the same name must not replace it.
    """
    run = folder / RUN if (folder / RUN).is_file() else folder.resolve().parent / RUN
    if name in EMBEDDED_MODELS or Path(name).is_absolute() or not run.is_file():
        return
    began = read_json(run)
    recorded = began.get("base")
    if isinstance(recorded, str) and Path(recorded).is_dir():
        if RECORDED_FOLDERS.setdefault(name, recorded) != recorded:
            raise UserError(f"{folder}: its model {name!r} is {recorded}, not {RECORDED_FOLDERS[name]}")
    elif (recorded or began.get("base_sha256")) and not Path(name).is_dir():
        searched = [*([str(recorded)] if recorded else []), str(Path(name).absolute())]
        raise UserError(
            f"{folder}: its model.name is {name!r}, a folder when the run began; looked for it at "
            f"{' and '.join(searched)} and did not find it; put it back, or change to the directory that the path is "
            "relative to"
        )


def require_same_terms(checkpoint: Checkpoint, recipe: Recipe, *, to_train: bool = False) -> None:
    """Raise UserError if the checkpoint has another base model, or if its run split, asked or graded differently.

    Otherwise a question that it was trained on could count as held out, and results would not be comparable.
    to_train: the kind of tuning must be the same too.
    """
    theirs, ours = (Path(model_path(name)) for name in (checkpoint.base, recipe.model.name))
    if theirs != ours and not (theirs.is_dir() and ours.is_dir() and theirs.samefile(ours)):
        raise UserError(
            f"{checkpoint.path}: trained on {checkpoint.base!r}, but the recipe's model.name is {recipe.model.name!r}"
        )
    for key in TERMS if checkpoint.recipe else ():
        theirs, ours = (operator.attrgetter(key)(r) for r in (checkpoint.recipe, recipe))
        if theirs != ours:
            raise UserError(f"{checkpoint.path}: its run had {key} = {theirs!r}, this recipe has {ours!r}")
    if to_train and checkpoint.is_adapter != (recipe.model.tuning == "lora"):
        kind = "an adapter" if checkpoint.is_adapter else "a whole model"
        raise UserError(f"{checkpoint.path}: is {kind}, but model.tuning is {recipe.model.tuning}")


def find_last(run: Path) -> tuple[Path | None, list[str]]:
    """(the newest complete checkpoint-N, one line for each newer damaged one). Every byte is verified.

    Raises UserError if a file cannot be read. The fault may be temporary, so an older checkpoint is not used instead.
    """
    skipped: list[str] = []
    for path in sorted(own_checkpoints(run), key=step_of, reverse=True):
        try:
            wrong = damage(path)
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; fix that, or remove the checkpoint") from None
        wrong = wrong or (None if (path / "trainer_state.json").is_file() else "it has no trainer_state.json")
        if wrong is None:
            return path, skipped
        skipped.append(f"{path} is skipped: {wrong}")
    return None, skipped


def rotate(run: Path, keep: int, saved: Path) -> None:
    """Delete all but the newest `keep` checkpoints up to the one just saved.

    Checkpoints of later steps are damaged and do not count. A folder without a seal does not count either; it is
    removed only if it is empty.
    """
    older = sorted((p for p in own_checkpoints(run) if step_of(p) <= step_of(saved)), key=step_of)
    kept = [p for p in older if is_own_file(p / SEAL)][-keep:]
    for path in older:
        if path not in kept:
            remove_folder(path)

"""Folders of runs and checkpoints: claim one, find one, say plainly when it is none. Imports no torch."""

from __future__ import annotations

import json
import operator
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorefast.recipe import Recipe, UserError, dump_recipe, load_recipe, model_path
from scorefast.untrusted import require_sound_folder

# What must be the same from one run to the next that starts from it: how questions are split, asked and graded.
TERMS = ("data.test_fraction", "data.validation_fraction", "prompt", "reward.grader")
RECIPE, RUN, METRICS = "recipe.yaml", "run.json", "metrics.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A PEFT folder (is_adapter) or a model folder; recipe is None where scorefast did not write it."""

    name: str
    path: Path
    is_adapter: bool
    base: str
    recipe: Recipe | None


def open_checkpoint(text: str) -> Checkpoint:
    """Raises UserError where the folder is no checkpoint, or a run that has none yet."""
    path = Path(text)
    if not path.is_dir():
        raise UserError(f"{text}: no such checkpoint folder")
    require_sound_folder(path)
    recipe = load_recipe(str(path / RECIPE)) if (path / RECIPE).is_file() else None
    name = f"{path.resolve().parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.resolve().name
    if (path / "adapter_config.json").is_file() and (path / "adapter_model.safetensors").is_file():
        _require_safetensors(path / "adapter_model.safetensors")
        base = recipe.model.name if recipe else _read_json(path / "adapter_config.json").get("base_model_name_or_path")
        return Checkpoint(name, path, True, str(base), recipe)
    if (path / "config.json").is_file() and list(path.glob("model*.safetensors")):
        return Checkpoint(name, path, False, recipe.model.name if recipe else text, recipe)
    last = last_trainer_checkpoint(path)
    if last is not None:
        raise UserError(f"{text}: this run has not finished; continue it with --resume, or use {last}")
    raise UserError(f"{text}: not a checkpoint (it has neither adapter_model.safetensors nor model.safetensors)")


def require_same_terms(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raises UserError where the checkpoint's base is another, or its run split, asked or graded otherwise: a question
    it was trained on could then count as held out, and figures would not compare."""
    if model_path(checkpoint.base) != model_path(recipe.model.name):
        raise UserError(
            f"{checkpoint.path}: trained on {checkpoint.base!r}, but the recipe's model.name is {recipe.model.name!r}"
        )
    for key in TERMS if checkpoint.recipe else ():
        theirs, ours = (operator.attrgetter(key)(r) for r in (checkpoint.recipe, recipe))
        if theirs != ours:
            raise UserError(f"{checkpoint.path}: its run had {key} = {theirs!r}, the recipe in force says {ours!r}")


def claim_run(out: Path | None, name: str) -> Path:
    """A new folder for a run: `out`, or the first free of runs/NAME, runs/NAME-2, ..."""
    if out is not None:
        require_free(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made: {error.strerror}") from None
        return out
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def require_free(out: Path | None) -> None:
    """Raises UserError where `out` is taken."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds files; choose another --out, or continue a run of it with --resume")


def start_run(folder: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    (folder / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / RUN).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def abandon_run(folder: Path) -> None:
    """Remove a run that never began, so that the same command can be given again."""
    if {path.name for path in folder.iterdir()} <= {RECIPE, RUN}:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def reopen_run(folder: Path, facts: dict[str, Any]) -> Recipe:
    """The recipe of a run to resume, if it is the same command on the same data. Raises UserError if it is not."""
    if not (folder / RECIPE).is_file() or not (folder / RUN).is_file():
        raise UserError(f"{folder}: no run to resume here (it has no {RECIPE} and {RUN})")
    began = _read_json(folder / RUN)
    for key in ("stage", "data_sha256", "from"):
        if began.get(key) != facts[key]:
            raise UserError(f"{folder}: began with {key} = {began.get(key)!r}, not {facts[key]!r}")
    return load_recipe(str(folder / RECIPE))


def last_trainer_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint-N whose trainer state was written (the Trainer writes it last)."""
    found = [p for p in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    complete = [p for p in found if (p / "trainer_state.json").is_file()]
    return max(complete, key=lambda p: int(p.name.split("-")[1]), default=None)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    path = run / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have torn the last one


def _require_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: cannot be read as JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content

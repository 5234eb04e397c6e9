"""Resume a run: what must stay the same, what may change, and which checkpoint to start from. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from scorefast import __version__
from scorefast.errors import UserError
from scorefast.files.atomic import file_sha256, is_own_file, write_file
from scorefast.files.bounded import read_json
from scorefast.files.model_folder import fingerprint, require_sound_folder
from scorefast.files.seal import SEAL, damage
from scorefast.files.text import shortened
from scorefast.recipe import EMBEDDED_MODELS, dump_recipe, flat, load_recipe, model_path
from scorefast.runs.checkpoint import Checkpoint, find_last
from scorefast.runs.layout import METRICS, RECIPE, RUN, Facts, step_of
from scorefast.runs.log import Metrics, log_bound, metrics_until, read_metrics
from scorefast.schema import Recipe, Stage1, Stage2

# Keys that may change when a run is resumed: batch sizes, validation and storage. Another batch size changes rounding
# and the samples drawn, not the objective.
MAY_CHANGE = ("eval.", "loss.", "rollout.batch_size", "report_to")
OF_A_STAGE = ("max_steps", "micro_batch_size", "save_steps", "save_total_limit", "eval_steps", "show_steps", "max_kl")


def start_provenance(start: Checkpoint | None) -> Facts:
    """Path and content hash of the start checkpoint. The hash is that of its seal, just verified, if it has one."""
    if start is None:
        return {"from": None}
    sealed = start.path / SEAL
    content = file_sha256(sealed) if sealed.is_file() else fingerprint(start.path)
    return {"from": str(start.path.resolve()), "from_sha256": content}


def base_provenance(recipe: Recipe) -> Facts:
    """Path and content hash of a base model that is a folder, and library versions. A hub model has neither."""
    base = Path(model_path(recipe.model.name))
    location = str(base.resolve()) if base.is_dir() and recipe.model.name not in EMBEDDED_MODELS else None
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    versions = {"scorefast": __version__, **packages}
    return {"base": location, "base_sha256": fingerprint(base) if base.is_dir() else None, "versions": versions}


def require_same_beginning(folder: Path, facts: Facts, note: Callable[[str], None] = lambda line: None) -> None:
    """Raise UserError if the run to resume began as another stage, on other data, or on another model. `note` gets one
    line for each library whose version has changed."""
    began = read_json(folder / RUN)
    if lacking := sorted({"stage", "data_sha256", "from"} - began.keys()):
        raise UserError(f"{folder / RUN}: lacks {lacking[0]}, so the run cannot be identified; name a new --out")
    if facts.get("from_sha256") and began.get("from_sha256"):
        facts = facts | {"from": began.get("from")}  # the checkpoint may have moved
    differ = [key for key in facts if key in began and began[key] != facts[key]]
    wanted = {
        "stage": f"it is a run of {began.get('stage')}, not of {facts['stage']}",
        "data_sha256": f"{facts['data']} is not the data that it began with; give that data",
        "from": f"it began from {began.get('from') or 'the base model'}, not from {facts['from'] or 'the base model'}",
        "from_sha256": f"{facts['from']} has changed since it began from there",
        "base_sha256": "its base model's folder has changed since it began",
        "backend": f"it began with the {began.get('backend')} backend, and here the backend is {facts.get('backend')}",
    }
    for key in wanted:
        if key in differ:
            raise UserError(f"{folder}: {wanted[key]}; to begin another run, name a new --out")
    before = began.get("versions")
    if not isinstance(before, dict):  # a run of an earlier version, which recorded none
        return
    for name, version in facts.get("versions", {}).items():
        if version != before.get(name):
            note(f"{name}: {before.get(name)} when this run began, {version} now: further steps can differ in rounding")


def change_recipe(folder: Path, recipe: Recipe) -> None:
    """Save the recipe that a resumed run continues with. If it differs, the run's old result is no longer valid, and
    its seal is removed."""
    if load_recipe(str(folder / RECIPE), saved=True) != recipe:
        (folder / SEAL).unlink(missing_ok=True)
        write_file(folder / RECIPE, dump_recipe(recipe))


def changes_allowed(folder: Path, stage: str, began: Recipe, wanted: Recipe) -> dict[str, tuple[object, object]]:
    """{key: (value at the start, value now)}. Raises UserError naming a key that must not change in a run.

    Keys of the other stage are ignored. max_steps may change if the learning rate does not depend on it.
    """
    ours, theirs = flat(began), flat(wanted)
    other = "stage1." if stage == "stage2" else "stage2."
    changed = {k: (ours.get(k), theirs.get(k)) for k in ours | theirs if ours.get(k) != theirs.get(k)}
    changed = {k: v for k, v in changed.items() if not k.startswith(other)}
    may = (*MAY_CHANGE, *(f"{stage}.{name}" for name in OF_A_STAGE))
    for key, (before, after) in changed.items():
        if not key.startswith(may):
            raise UserError(
                f"{folder}: began with {key} = {before!r}, not {after!r}; it cannot change when a run is resumed; "
                f"start another run in a new --out"
            )
    scheduler = ours[f"{stage}.lr_scheduler"]
    if f"{stage}.max_steps" in changed and not scheduler.startswith("constant"):
        raise UserError(f"{folder}: {stage}.max_steps cannot change because lr_scheduler = {scheduler} depends on it")
    return changed


def find_resumable(
    folder: Path, stage: Stage1 | Stage2, recipe: Recipe, note: Callable[[str], None]
) -> tuple[Path | None, list[Metrics]]:
    """(the checkpoint to resume from, the metrics up to it). Changes no file.

    `note` gets a line for each damaged checkpoint, and for a damaged log. Raises UserError if the run cannot be resumed
    with this recipe.
    """
    last, skipped = find_last(folder)
    for line in skipped:
        note(line)
    if last is None:
        if damage(folder) is None:
            raise UserError(f"{folder}: has finished, and has no checkpoint left to resume from; name another --out")
        if skipped:
            note("no complete checkpoint is left: the run starts again")
        return None, []
    if step_of(last) > stage.max_steps:
        raise UserError(f"{last}: the run is already past {stage.name}.max_steps = {stage.max_steps}")
    if (last / RECIPE).is_file():  # the sealed recipe that it was trained by; the run's own file can be edited
        changes_allowed(folder, stage.name, load_recipe(str(last / RECIPE), saved=True), recipe)
    metrics, damaged = metrics_until(folder, step_of(last), require_resumable(last), log_bound(stage.max_steps))
    if damaged:
        note(f"{damaged}; rewritten from {last}")
    return last, metrics


def require_resumable(last: Path) -> list[Metrics]:
    """The log that the checkpoint holds: its metrics.jsonl, or trainer_state.json in one of an earlier version.

    Raises UserError if the checkpoint holds a file that must not be loaded.
    """
    require_sound_folder(last)
    path = last / "trainer_state.json"
    state = read_json(path, log_bound(step_of(last)))
    try:
        _saved_state().model_validate(state)
        history = [{"step": line["step"], **line} for line in state["log_history"] if "train_runtime" not in line]
    except ValidationError as error:
        problem = error.errors()[0]
        key = shortened(".".join(map(str, problem["loc"])), 100)
        raise UserError(f"{path}: not a valid trainer state: {key}: {problem['msg']}") from None
    except KeyError:
        raise UserError(f"{path}: not a valid trainer state: log_history has a line without a step") from None
    if state["global_step"] != step_of(last):
        raise UserError(f"{path}: is of step {state['global_step']}: the folder was renamed; give it its old name")
    return read_metrics(last, log_bound(step_of(last))) if is_own_file(last / METRICS) else history


@cache
def _saved_state() -> type[BaseModel]:
    """The schema of trainer_state.json. The Trainer itself accepts values of any type and fails on them later."""
    from transformers import TrainerState

    kinds = get_type_hints(TrainerState) | {"train_batch_size": int, "stateful_callbacks": dict[str, Any]}
    needed = ("global_step", "train_batch_size", "log_history")
    fields: Any = {name: (kind, ... if name in needed else None) for name, kind in kinds.items()}
    return create_model("SavedState", __config__=ConfigDict(strict=True, extra="forbid"), **fields)

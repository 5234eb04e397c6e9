"""Folders of runs and checkpoints: claim one, find one, say plainly when it is none. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import re
import signal
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from scorefast import __version__
from scorefast.durable import (
    SEAL,
    WORK,
    damage,
    file_sha256,
    fingerprint,
    is_own_file,
    make_folder,
    remove_files,
    remove_folder,
    unmake,
    write_file,
)
from scorefast.ownership import LOCK, Owner
from scorefast.recipe import (
    EMBEDDED_MODELS,
    RECORDED_FOLDERS,
    Recipe,
    RunError,
    UserError,
    dump_recipe,
    flat,
    load_recipe,
    model_path,
)
from scorefast.untrusted import LARGEST_JSON, read_json, require_sound_folder

# What must be the same from one run to the next that starts from it: how questions are split, asked and graded.
TERMS = ("data.test_fraction", "data.validation_fraction", "prompt", "reward.grader")
# What may change where a run is resumed: how it is cut into pieces, watched and stored. Sampling in other batches and
# other micro-batches change a run by rounding and by which samples are drawn, not in what it optimises.
MAY_CHANGE = ("eval.", "loss.", "rollout.batch_size", "report_to")
OF_A_STAGE = ("max_steps", "micro_batch_size", "save_steps", "save_total_limit", "eval_steps", "show_steps", "max_kl")
RECIPE, RUN, METRICS, DROPPED = "recipe.yaml", "run.json", "metrics.jsonl", "dropped.jsonl"
CHECKPOINT = re.compile(r"checkpoint-[1-9][0-9]*")  # the names that a run gives: `checkpoint-04` is somebody else's
STEP_BYTES = 2**13  # the most that the log may take of a step: its line has 600, that of a validation 300
LEFTOVERS = {LOCK, RECIPE, DROPPED, f".{RECIPE}.partial", f".{RUN}.partial"}  # of a run killed before it had begun


@dataclass(frozen=True)
class Checkpoint:
    """A PEFT folder (is_adapter) or a model folder; recipe is None where scorefast did not write it."""

    name: str
    path: Path
    is_adapter: bool
    base: str
    recipe: Recipe | None


class Interrupted(BaseException):
    """What runs was asked to stop, by the signal `signum`; a stage has saved by then what it had."""

    def __init__(self, signum: int):
        self.signum = signum


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Interrupted, so that what is half done is cleared away. One that is ignored (by nohup)
    still is."""

    def leave(signum: int, frame: Any) -> None:
        raise Interrupted(signum)

    wanted = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {n: signal.signal(n, leave) for n in wanted if signal.getsignal(n) == signal.SIG_DFL}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
    recipe = load_recipe(str(path / RECIPE)) if (path / RECIPE).is_file() else None
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


@contextlib.contextmanager
def claimed(out: Path | None, name: str, *, resume: bool = False) -> Iterator[Path]:
    """A new folder for a run: `out`, or the first free of runs/NAME, runs/NAME-2, ... Where the block fails and leaves
    it empty, what was made is removed: the folder and those above it."""
    folder, made = _claim(out, name, resume)
    try:
        yield folder
    except BaseException:
        unmake(made)
        raise


def claim_run(out: Path | None, name: str) -> Path:
    return _claim(out, name, False)[0]


def _claim(out: Path | None, name: str, resume: bool) -> tuple[Path, list[Path]]:
    if out is not None:
        require_free(out, resume=resume)
        try:
            return out, make_folder(out)
        except OSError as error:
            raise UserError(f"{out}: cannot be made: {error.strerror}") from None
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        number += 1
        try:
            above = make_folder(folder.parent)
            folder.mkdir()
            return folder, [*above, folder]
        except OSError as error:
            if not os.path.lexists(folder):  # not taken: its parent is a file, a link to nowhere, not ours to write
                raise UserError(f"{folder}: cannot be made: {error.strerror}; name another place with --out") from None


def require_free(out: Path | None, *, resume: bool = False) -> None:
    """Raises UserError where `out` is taken; with `resume`, not by what a run leaves that was killed at its start."""
    if out is None:
        return
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in str(out)):  # it will be the line on stdout
        raise UserError(f"--out {str(out)!r}: has a line break or control character")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; --out takes a folder, new or empty")
    names = {path.name for path in out.iterdir()}
    if names == {WORK}:
        raise UserError(f"{out}: holds what a killed command left behind, {out / WORK}; remove that")
    if names - (LEFTOVERS if resume and LOCK in names else {LOCK}):
        run = "continue the run in it with --resume" if (out / RUN).is_file() else "an empty one"
        raise UserError(f"{out}: already holds files; choose another --out, or {run}")


@contextlib.contextmanager
def own_run(folder: Path) -> Iterator[Owner]:
    """Be the only writer of `folder`. Raises UserError where another is."""
    owner = Owner(folder)
    owner.take()
    try:
        yield owner
    finally:
        owner.release()


def start_run(folder: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Write down what the run is; with run.json, the last file, it has begun."""
    write_file(folder / RECIPE, dump_recipe(recipe))
    write_file(folder / RUN, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def has_begun(folder: Path) -> bool:
    """Whether there is a run to resume. False for a folder that is new, empty, or was left before anything was in it.

    Raises UserError where the folder holds something else.
    """
    if (folder / RUN).is_file() and (folder / RECIPE).is_file():
        return True
    left = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if left - LEFTOVERS or (left and LOCK not in left):
        raise UserError(f"{folder}: no run to resume here (it has no {RECIPE} and {RUN}), and it is not empty")
    return False


@contextlib.contextmanager
def abandoned_where_it_fails(owner: Owner) -> Iterator[None]:
    """Where the block fails before anything was trained, what it wrote is removed, so that the same command can be
    given again. A run that was interrupted stays, to be resumed; one that is another process's by now is not touched.
    """
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError, RunError):
            owner.confirm()
            if not _checkpoints(owner.folder) and not any(b'"loss"' in m for m in metrics_lines(owner.folder)):
                remove_files(owner.folder, (*LEFTOVERS, RUN, METRICS))
        raise


def what_it_starts_from(start: Checkpoint | None) -> dict[str, Any]:
    """The checkpoint's place and content: that of its seal, which has just been checked, where it has one."""
    if start is None:
        return {"from": None}
    sealed = start.path / SEAL
    content = file_sha256(sealed) if sealed.is_file() else fingerprint(start.path)
    return {"from": str(start.path.resolve()), "from_sha256": content}


def what_it_stands_on(recipe: Recipe) -> dict[str, Any]:
    """The base model, where it is a folder, by place and content (one of the hub by name alone), and the libraries."""
    base = Path(model_path(recipe.model.name))
    place = str(base.resolve()) if base.is_dir() and recipe.model.name not in EMBEDDED_MODELS else None
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    versions = {"scorefast": __version__, **packages}
    return {"base": place, "base_sha256": fingerprint(base) if base.is_dir() else None, "versions": versions}


def require_same_beginning(
    folder: Path, facts: dict[str, Any], note: Callable[[str], None] = lambda line: None
) -> None:
    """Raises UserError where the run to resume began as another stage, on other data, or on another model. Of other
    versions of the libraries `note` is told."""
    began = read_json(folder / RUN)
    if lacking := sorted({"stage", "data_sha256", "from"} - began.keys()):
        raise UserError(f"{folder / RUN}: lacks {lacking[0]}: what this run is of cannot be known; name a new --out")
    if facts.get("from_sha256") and began.get("from_sha256"):
        facts = facts | {"from": began.get("from")}  # wherever it lies now
    differ = [key for key in facts if key in began and began[key] != facts[key]]
    wanted = {
        "stage": f"it is a run of {began.get('stage')}, not of {facts['stage']}",
        "data_sha256": f"{facts['data']} does not hold the data it began with; give that",
        "from": f"it began from {began.get('from') or 'the base model'}, not from {facts['from'] or 'the base model'}",
        "from_sha256": f"{facts['from']} has changed since it began from there",
        "base_sha256": "its base model's folder has changed since it began",
        "backend": f"it began with the {began.get('backend')} backend, here it would be {facts.get('backend')}",
    }
    for key in wanted:
        if key in differ:
            raise UserError(f"{folder}: {wanted[key]}; to begin another run, name a new --out")
    before = began.get("versions")
    if not isinstance(before, dict):  # begun before they were noted
        return
    for name, version in facts.get("versions", {}).items():
        if version != before.get(name):
            note(f"{name}: {before.get(name)} when this run began, {version} now: what follows can differ in rounding")


def change_recipe(folder: Path, recipe: Recipe) -> None:
    """What a resumed run goes on with. A result that it had before is no longer its result."""
    if load_recipe(str(folder / RECIPE)) != recipe:
        (folder / SEAL).unlink(missing_ok=True)
        write_file(folder / RECIPE, dump_recipe(recipe))


def changes_allowed(folder: Path, section: str, began: Recipe, wanted: Recipe) -> dict[str, tuple[Any, Any]]:
    """{key: (value it began with, value wanted)}. Raises UserError naming a key that must not change in a run.

    Keys of the other stage are of no account. Steps may be added where the learning rate does not depend on their
    number.
    """
    ours, theirs = flat(began), flat(wanted)
    other = "stage1." if section == "stage2" else "stage2."
    changed = {k: (ours.get(k), theirs.get(k)) for k in ours | theirs if ours.get(k) != theirs.get(k)}
    changed = {k: v for k, v in changed.items() if not k.startswith(other)}
    may = (*MAY_CHANGE, *(f"{section}.{name}" for name in OF_A_STAGE))
    for key, (before, after) in changed.items():
        if not key.startswith(may):
            raise UserError(
                f"{folder}: began with {key} = {before!r}, not {after!r}: a resumed run keeps it; start another run "
                f"in a new --out"
            )
    scheduler = ours[f"{section}.lr_scheduler"]
    if f"{section}.max_steps" in changed and not scheduler.startswith("constant"):
        raise UserError(
            f"{folder}: {section}.max_steps cannot change, because lr_scheduler = {scheduler} depends on it"
        )
    return changed


def find_last(run: Path) -> tuple[Path | None, list[str]]:
    """(the newest whole checkpoint-N, a line for each newer one that is damaged). Found by looking at every byte.

    Raises UserError where one cannot be read: that may pass, and is no reason to go on from an older one.
    """
    passed_over: list[str] = []
    for path in sorted(_checkpoints(run), key=step_of, reverse=True):
        try:
            wrong = damage(path)
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; mend that, or remove the checkpoint") from None
        wrong = wrong or (None if (path / "trainer_state.json").is_file() else "it has no trainer_state.json")
        if wrong is None:
            return path, passed_over
        passed_over.append(f"{path} is passed over: {wrong}")
    return None, passed_over


def _checkpoints(run: Path) -> list[Path]:
    """Links are none of the run's own: what they lead to is neither resumed from nor rotated away."""
    found = (p for p in run.glob("checkpoint-*") if CHECKPOINT.fullmatch(p.name))
    return [p for p in found if p.is_dir() and not p.is_symlink()]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def rotate(run: Path, keep: int, saved: Path) -> None:
    """Delete all but the newest `keep` checkpoints up to the one just saved. Newer ones are damaged: not counted. Nor
    is what has no seal, of which only an empty folder is removed."""
    older = sorted((p for p in _checkpoints(run) if step_of(p) <= step_of(saved)), key=step_of)
    kept = [p for p in older if is_own_file(p / SEAL)][-keep:]
    for path in older:
        if path not in kept:
            remove_folder(path)


def log_bound(steps: int) -> int:
    """The most bytes that the log of a run may have after so many steps."""
    return LARGEST_JSON + steps * STEP_BYTES


def metrics_lines(run: Path) -> list[bytes]:
    """Of metrics.jsonl, but for a last one that a kill has torn. A link or a pipe is no log."""
    path = run / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if is_own_file(path) else []
    return [line for line in lines if line.endswith(b"\n")]


def read_metrics(folder: Path, bound: int | None = None) -> list[dict[str, Any]]:
    """The log of a run, or that in a checkpoint. Raises UserError where it has more than `bound` bytes, and naming a
    line that is none of a log."""
    path, found = folder / METRICS, []
    if bound is not None and is_own_file(path) and path.stat().st_size > bound:
        raise UserError(f"{path}: larger than the {bound:,} bytes that the log of this run may have")
    for number, line in enumerate(metrics_lines(folder), 1):
        try:
            found.append(json.loads(line))
            if type(found[-1]["step"]) is not int or not all(_is_figure(v) for v in found[-1].values()):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{path}:{number}: not a line of metrics") from None
    return found


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def metrics_until(
    run: Path, step: int, history: Sequence[dict[str, Any]], bound: int
) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of metrics.jsonl up to that step, and None; or, where it is damaged or lacks a step, what the
    checkpoint of that step keeps of the same (history), and what is wrong with the file."""
    if step == 0:  # nothing to go on from: begun anew, the first validation too
        return [], None
    try:
        lines = [m for m in read_metrics(run, bound) if m["step"] <= step]
    except UserError as error:
        return list(history), str(error)
    lacking = set(range(1, step + 1)) - {m["step"] for m in lines if "loss" in m}
    return (list(history), f"{run / METRICS}: lacks step {min(lacking)}") if lacking else (lines, None)


def metrics_line(values: dict[str, Any]) -> str:
    """Strict JSON: NaN and infinities, which it has not, are null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def append_metrics(run: Path, lines: str) -> None:
    """Add to metrics.jsonl and flush to the disk: all of `lines`, or an OSError and none. The file must be there; a
    link is not followed, and a pipe is not waited for."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(run / METRICS, flags), "r+b", buffering=0) as file:
        before, rest = file.seek(0, os.SEEK_END), lines.encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise

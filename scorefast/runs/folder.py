"""Claim, start and lock the folder of a run. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from scorefast.errors import RunError, UserError
from scorefast.files.atomic import WORK, make_folder, remove_files, unmake, write_file
from scorefast.recipe import dump_recipe
from scorefast.runs.layout import LEFTOVERS, METRICS, RECIPE, RUN, Facts, own_checkpoints
from scorefast.runs.log import metrics_lines
from scorefast.runs.owner import LOCK, Owner
from scorefast.schema import Recipe


@contextlib.contextmanager
def claimed(out: Path | None, name: str, *, resume: bool = False) -> Iterator[Path]:
    """A new folder for a run: `out`, or the first free of runs/NAME, runs/NAME-2, ...

    If the block fails and the folder is empty, the folder and the parents made for it are removed.
    """
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
            raise UserError(f"{out}: cannot be created: {error.strerror}") from None
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        number += 1
        try:
            above = make_folder(folder.parent)
            folder.mkdir()
            return folder, [*above, folder]
        except OSError as error:
            if not os.path.lexists(folder):  # the name is free; the parent is a file, a broken link or not writable
                raise UserError(f"{folder}: cannot be created: {error.strerror}; choose another --out") from None


def require_free(out: Path | None, *, resume: bool = False) -> None:
    """Raise UserError if `out` is not free. resume: files of a run that was killed at its start are allowed."""
    if out is None:
        return
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in str(out)):  # the path is printed as a line on stdout
        raise UserError(f"--out {str(out)!r}: has a line break or control character")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; --out takes a new or empty folder")
    names = {path.name for path in out.iterdir()}
    if names == {WORK}:
        raise UserError(f"{out}: holds what a killed command left behind, {out / WORK}; remove that")
    if names - (LEFTOVERS if resume and LOCK in names else {LOCK}):
        run = "continue the run in it with --resume" if (out / RUN).is_file() else "an empty one"
        raise UserError(f"{out}: already holds files; choose another --out, or {run}")


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[Owner]:
    """Hold the write lock of `folder`. Raises UserError if another process has it."""
    owner = Owner(folder)
    owner.take()
    try:
        yield owner
    finally:
        owner.release()


def start_run(folder: Path, recipe: Recipe, facts: Facts) -> None:
    """Write recipe.yaml, then run.json with the run's facts. run.json, the last file, marks the run as begun."""
    write_file(folder / RECIPE, dump_recipe(recipe))
    write_file(folder / RUN, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def has_begun(folder: Path) -> bool:
    """Whether `folder` holds a run to resume. False if it is new or empty, or if a run was killed at its start.

    Raises UserError if the folder holds anything else.
    """
    if (folder / RUN).is_file() and (folder / RECIPE).is_file():
        return True
    left = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if left - LEFTOVERS or (left and LOCK not in left):
        raise UserError(f"{folder}: no run to resume here (it has no {RECIPE} and {RUN}), and it is not empty")
    return False


@contextlib.contextmanager
def removed_on_failure(owner: Owner) -> Iterator[None]:
    """Remove the files of a run that fails before its first step, so that the same command can be repeated.

    An interrupted run stays and can be resumed. A run that another process has locked meanwhile is not touched.
    """
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError, RunError):
            owner.confirm()
            if not own_checkpoints(owner.folder) and not any(b'"loss"' in m for m in metrics_lines(owner.folder)):
                remove_files(owner.folder, (*LEFTOVERS, RUN, METRICS))
        raise

"""The folder of a run: claimed, begun, locked. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scorefast.errors import RunError, UserError
from scorefast.files.atomic import WORK, make_folder, remove_files, unmake, write_file
from scorefast.recipe import dump_recipe
from scorefast.runs.layout import LEFTOVERS, METRICS, RECIPE, RUN, own_checkpoints
from scorefast.runs.log import metrics_lines
from scorefast.runs.owner import LOCK, Owner
from scorefast.schema import Recipe


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
def lock_run(folder: Path) -> Iterator[Owner]:
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
            if not own_checkpoints(owner.folder) and not any(b'"loss"' in m for m in metrics_lines(owner.folder)):
                remove_files(owner.folder, (*LEFTOVERS, RUN, METRICS))
        raise

"""Resolve the arguments of `stage1` or `stage2` into one frozen `Job`. Imports no torch."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from scorefast.data.example import Dataset, Example
from scorefast.data.load import content_sha256, load_dataset
from scorefast.errors import UserError
from scorefast.runs.checkpoint import Checkpoint, open_checkpoint, require_same_terms
from scorefast.runs.folder import claimed, has_begun, lock_run, removed_on_failure, require_free
from scorefast.runs.layout import Facts
from scorefast.runs.owner import Owner
from scorefast.runs.processes import world
from scorefast.runs.recipe_choice import chosen_recipe, resumed_recipe
from scorefast.runs.resume import require_same_beginning, start_provenance
from scorefast.schema import Recipe, Stage1, Stage2, StageName


@dataclass(frozen=True)
class Request:
    """The arguments of the command, as given. start: --from. overrides: --set and the flags that are short for it."""

    name: StageName
    data: str
    start: str | None
    recipe: str
    overrides: list[str]
    out: Path | None
    resume: bool


@dataclass(frozen=True)
class Job:
    """One run of a stage, with every choice made.

    folder: the run's folder; before `claim`, a proposal that may be taken by then. begun: the folder already holds this
    run, which resumes. facts: the content of run.json.
    """

    name: StageName
    recipe: Recipe
    dataset: Dataset
    start: Checkpoint | None
    folder: Path
    begun: bool = False
    facts: Facts = field(default_factory=dict)

    @property
    def stage(self) -> Stage1 | Stage2:
        return self.recipe.stage(self.name)

    @property
    def train(self) -> list[Example]:
        """Raises UserError if there are no training questions."""
        return self.dataset.split("train", "training")

    @property
    def validation(self) -> list[Example]:
        return self.dataset.splits["validation"][: self.recipe.eval.max_questions]

    @property
    def command(self) -> str:
        """The command that resumes the run."""
        words = ["scorefast", self.name, "--data", self.facts["data"]]
        words += ["--from", str(self.start.path)] if self.start else []
        words += ["--out", str(self.folder)]
        words += ["--reward", self.recipe.reward.function] if self.recipe.reward.function else []
        return shlex.join([*words, "--resume"])


def resolve(
    request: Request, note: Callable[[str], None], cleanup: contextlib.ExitStack, *, dry_run: bool = False
) -> tuple[Job, Owner]:
    """Read the checkpoint, recipe and data that the arguments name. A resumed run is locked until `cleanup` closes.

    Raises UserError naming the file, the row or the key.
    """
    out, is_main = request.out, world().rank == 0
    if request.resume and out is None:
        raise UserError("--resume: name the run to continue with --out")
    if world().size > 1 and out is None and not dry_run:
        raise UserError("several processes: name the run's folder with --out")
    begun = out is not None and request.resume and has_begun(out)
    folder = out or Path("runs") / request.name
    owner = Owner(folder)
    if begun and is_main and not dry_run:
        owner = cleanup.enter_context(lock_run(folder))
    elif not begun and is_main:
        require_free(out, resume=request.resume)

    start = open_checkpoint(request.start) if request.start else None
    facts = {"stage": request.name, "data_sha256": content_sha256(request.data), "data": request.data}
    facts |= start_provenance(start)
    if begun:
        require_same_beginning(folder, facts)
        recipe = resumed_recipe(folder, request.name, request.recipe, request.overrides, note)
    else:
        recipe = chosen_recipe(request.recipe, request.overrides, start, note, rewards=True)
    if start is not None:
        require_same_terms(start, recipe, to_train=True)
    dataset = load_dataset(request.data, recipe.data, note)
    return Job(request.name, recipe, dataset, start, folder, begun, facts), owner


def claim(request: Request, job: Job, owner: Owner, cleanup: contextlib.ExitStack) -> tuple[Job, Owner]:
    """The job with a folder that this process has made and locked. If the run fails before its first step, the folder
    is removed when `cleanup` closes."""
    if job.begun or world().rank != 0:
        return job, owner
    folder = cleanup.enter_context(claimed(request.out, job.name, resume=request.resume))
    owner = cleanup.enter_context(lock_run(folder))
    require_free(folder, resume=request.resume)  # check again under the lock
    cleanup.enter_context(removed_on_failure(owner))
    return replace(job, folder=folder), owner

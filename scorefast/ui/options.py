"""Options that several commands share. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from scorefast.data.example import SPLITS, Split
from scorefast.errors import UserError
from scorefast.schema import GraderName

ExportFormat = Literal["adapter", "merged-16bit", "gguf"]
SOURCES = "CSV, TSV, JSON, JSONL or Parquet file (also .gz, .zst), a folder of them, or hub:owner/name"

DataOption = Annotated[str, typer.Option("--data", help=f"{SOURCES}; or a folder made by `prepare`.")]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="Your column names, e.g. question=problem,correct_answer=answer.")
]
OnErrorOption = Annotated[
    str | None, typer.Option("--on-error", help="stop (at more than 1 % bad rows; the default) or skip.")
]
RewardOption = Annotated[
    str | None,
    typer.Option(
        "--reward",
        help="Reward function with TRL's signature, as module:function or file.py:function; replaces the grader's "
        "0 or 1.",
    ),
]
GraderOption = Annotated[
    str | None, typer.Option("--grader", help=f"{', '.join(get_args(GraderName))}; default: the recipe's.")
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A .yaml file or the name of a shipped recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key, e.g. stage2.alpha=5.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder to create; default: a new one under runs/.", readable=False)
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Overrides the recipe's seed.")]
FromOption = Annotated[str | None, typer.Option("--from", help="Checkpoint to start from; default: the base model.")]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in --out after its last checkpoint, or start it."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and plan; load no model.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print only errors to stderr.")]


def overrides(
    set_: list[str] | None,
    seed: int | None,
    columns: str | None,
    on_error: str | None,
    grader: str | None,
    reward: str | None = None,
) -> list[str]:
    """All flags that change the recipe, in the form of `--set`. Raises UserError naming the flag."""
    found = list(set_ or [])
    for pair in (columns or "").split(","):
        ours, equals, theirs = pair.partition("=")
        if equals and ours.strip() and theirs.strip():
            found.append(f"data.columns.{ours.strip()}={json.dumps(theirs.strip())}")
        elif columns is not None:
            raise UserError(f"--columns {columns}: expected field=column,..., for example question=problem")
    if on_error not in (None, "stop", "skip"):
        raise UserError(f"--on-error {on_error}: expected stop or skip")
    if on_error is not None:
        found.append(f"data.on_error={on_error}")
    if grader is not None:
        found.append(f"reward.grader={grader_name(grader)}")
    if reward is not None:
        found.append(f"reward.function={json.dumps(_with_absolute_path(reward))}")
    return found + ([f"seed={seed}"] if seed is not None else [])


def grader_name(text: str) -> GraderName:
    names = get_args(GraderName)
    if text not in names:
        raise UserError(f"--grader {text}: expected one of {', '.join(names)}")
    return next(name for name in names if name == text)


def export_format(text: str) -> ExportFormat:
    names = get_args(ExportFormat)
    if text not in names:
        raise UserError(f"--format {text}: expected one of {', '.join(names)}")
    return next(name for name in names if name == text)


def split_name(text: str) -> Split:
    if text not in SPLITS:
        raise UserError(f"--split {text}: expected one of {', '.join(SPLITS)}")
    return next(name for name in SPLITS if name == text)


def _with_absolute_path(reward: str) -> str:
    """`file.py:function` with an absolute path, so that a run can be resumed from another directory."""
    file, _, function = reward.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{function}" if file.endswith(".py") else reward

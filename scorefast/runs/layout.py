"""The files of a run's folder: their names, and the type of run.json. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from scorefast.runs.owner import LOCK

RECIPE, RUN, METRICS, DROPPED = "recipe.yaml", "run.json", "metrics.jsonl", "dropped.jsonl"
Facts = dict[str, Any]  # the content of run.json
CHECKPOINT = re.compile(r"checkpoint-[1-9][0-9]*")  # a run never writes `checkpoint-04`
LEFTOVERS = {LOCK, RECIPE, DROPPED, f".{RECIPE}.partial", f".{RUN}.partial"}  # left by a run killed at its start


def own_checkpoints(run: Path) -> list[Path]:
    """The checkpoint-N folders of a run. Symbolic links are left out: they are neither resumed from nor deleted."""
    found = (p for p in run.glob("checkpoint-*") if CHECKPOINT.fullmatch(p.name))
    return [p for p in found if p.is_dir() and not p.is_symlink()]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])

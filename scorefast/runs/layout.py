"""Names of the files in the folder of a run. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from scorefast.runs.owner import LOCK

RECIPE, RUN, METRICS, DROPPED = "recipe.yaml", "run.json", "metrics.jsonl", "dropped.jsonl"
CHECKPOINT = re.compile(r"checkpoint-[1-9][0-9]*")  # the names that a run gives: `checkpoint-04` is somebody else's
LEFTOVERS = {LOCK, RECIPE, DROPPED, f".{RECIPE}.partial", f".{RUN}.partial"}  # of a run killed before it had begun


def own_checkpoints(run: Path) -> list[Path]:
    """Links are none of the run's own: what they lead to is neither resumed from nor rotated away."""
    found = (p for p in run.glob("checkpoint-*") if CHECKPOINT.fullmatch(p.name))
    return [p for p in found if p.is_dir() and not p.is_symlink()]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])

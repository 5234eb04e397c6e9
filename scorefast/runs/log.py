"""metrics.jsonl, the log of a run: a line of JSON a step, and one a validation. Imports no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scorefast.errors import UserError
from scorefast.files.atomic import is_own_file
from scorefast.files.bounded import LARGEST_JSON
from scorefast.runs.layout import METRICS

Metrics = dict[str, Any]  # a line of the log: its step, and numbers by name; null where one was not finite

STEP_BYTES = 2**13  # the most that the log may take of a step: its line has 600, that of a validation 300


def log_bound(steps: int) -> int:
    """The most bytes that the log of a run may have after so many steps."""
    return LARGEST_JSON + steps * STEP_BYTES


def metrics_lines(run: Path) -> list[bytes]:
    """Of metrics.jsonl, but for a last one that a kill has torn. A link or a pipe is no log."""
    path = run / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if is_own_file(path) else []
    return [line for line in lines if line.endswith(b"\n")]


def read_metrics(folder: Path, bound: int | None = None) -> list[Metrics]:
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


def metrics_until(run: Path, step: int, history: Sequence[Metrics], bound: int) -> tuple[list[Metrics], str | None]:
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


def metrics_line(values: Metrics) -> str:
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

"""metrics.jsonl, the log of a run: one JSON line per step and one per validation. Imports no torch."""

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

Metrics = dict[str, Any]  # a line of the log: its step, and numbers by name; null if a number was not finite

STEP_BYTES = 2**13  # upper bound per step; the line of a step has about 600, that of a validation 300


def log_bound(steps: int) -> int:
    """Upper bound in bytes of a run's log after `steps` steps."""
    return LARGEST_JSON + steps * STEP_BYTES


def metrics_lines(run: Path) -> list[bytes]:
    """The lines of metrics.jsonl, without a last line that a kill cut off. Empty if it is not a regular file."""
    path = run / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if is_own_file(path) else []
    return [line for line in lines if line.endswith(b"\n")]


def read_metrics(folder: Path, bound: int | None = None) -> list[Metrics]:
    """The log of a run or of a checkpoint. Raises UserError if it exceeds `bound` bytes, or naming an invalid line."""
    path, found = folder / METRICS, []
    if bound is not None and is_own_file(path) and path.stat().st_size > bound:
        raise UserError(f"{path}: larger than the {bound:,} bytes that the log of this run may have")
    for number, line in enumerate(metrics_lines(folder), 1):
        try:
            found.append(json.loads(line))
            if type(found[-1]["step"]) is not int or not all(_is_number(v) for v in found[-1].values()):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{path}:{number}: not a line of metrics") from None
    return found


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def metrics_until(run: Path, step: int, history: Sequence[Metrics], bound: int) -> tuple[list[Metrics], str | None]:
    """(log lines up to `step`, what is wrong with metrics.jsonl or None).

    If metrics.jsonl is damaged or lacks a step, the lines are `history`, the copy in the checkpoint of that step.
    """
    if step == 0:  # the run starts again, with its first validation
        return [], None
    try:
        lines = [m for m in read_metrics(run, bound) if m["step"] <= step]
    except UserError as error:
        return list(history), str(error)
    lacking = set(range(1, step + 1)) - {m["step"] for m in lines if "loss" in m}
    return (list(history), f"{run / METRICS}: lacks step {min(lacking)}") if lacking else (lines, None)


def metrics_line(values: Metrics) -> str:
    """One line of strict JSON: NaN and infinities become null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def append_metrics(run: Path, lines: str) -> None:
    """Append all of `lines` to metrics.jsonl and fsync it, or raise OSError and append nothing.

    The file must exist. A symbolic link is not followed, and opening a pipe does not block.
    """
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

"""Grade the lines of a file. Imports no torch."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import get_args

from scorefast.errors import UserError
from scorefast.files.bounded import MAX_DEPTH, JsonObject, is_deep
from scorefast.files.lines import bounded_lines, line_text, stdin_text
from scorefast.files.text import shortened
from scorefast.grading.grade import grade
from scorefast.schema import GraderName


def grade_lines(file: str, grader: GraderName) -> Iterator[tuple[int, JsonObject]]:
    """Yields (line number, object) of a JSONL file, with `correct`, `score`, `reason` and `unsure` added.

    An object has `answer` and `reference`; `label` (true or false), `grader` and `question` are optional. `-` reads
    stdin. Raises UserError naming file and line.
    """
    try:
        if file != "-" and stat.S_ISFIFO(os.stat(file).st_mode) and not file.startswith("/dev/"):
            raise UserError(f"{file}: a pipe; read it from stdin: scorefast grade - < {file}")
        stream = stdin_text() if file == "-" else line_text(open(file, "rb"))  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    with stream:
        for number, line in enumerate(bounded_lines(stream, file), 1):
            if not line.strip():
                continue
            row = _graded_line(f"{file}: line {number}", line, grader)
            yield number, row


def _graded_line(where: str, line: str, grader: GraderName) -> JsonObject:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with answer and reference")
    if is_deep(row):
        raise UserError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    for key in ("answer", "reference", "question"):
        if isinstance(row.get(key), int | float) and not isinstance(row[key], bool):
            continue
        if not isinstance(row.get(key), str) and (key != "question" or row.get(key) is not None):
            raise UserError(f"{where}: {key!r} is missing or not text; an object has answer and reference")
    if not isinstance(row.get("label"), bool | None):
        raise UserError(f"{where}: 'label' is {shortened(repr(row['label']), 60)}; expected true or false")
    if row.get("grader") not in (None, *get_args(GraderName)):
        given, known = shortened(repr(row["grader"]), 60), ", ".join(get_args(GraderName))
        raise UserError(f"{where}: 'grader' is {given}; expected one of {known}")
    question = None if row.get("question") is None else str(row["question"])
    found = grade(str(row["answer"]), str(row["reference"]), row.get("grader") or grader, question)
    added = {"correct": found.correct, "score": round(found.score, 6), "reason": found.reason, "unsure": found.unsure}
    return row | added

"""Rows of JSON and JSONL files. Imports no torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from scorefast.data.rows import (
    CHUNK_CHARACTERS,
    CHUNK_ROWS,
    MAX_JSON_BYTES,
    MAX_JSON_VALUES,
    RAW_CHARACTERS,
    BadRow,
    Rows,
    json_too_large,
    text_problem,
)
from scorefast.errors import UserError
from scorefast.files.bounded import MAX_COLUMNS, MAX_DEPTH, is_deep
from scorefast.files.lines import bounded_lines
from scorefast.files.text import one_line


def jsonl_rows(path: Path, text: TextIO) -> Iterator[Rows | BadRow]:
    records: list[dict[str, object]] = []
    lines: list[int] = []
    size = 0  # characters in `records`
    for number, line in enumerate(bounded_lines(text, path), 1):
        if not line.strip():
            continue
        value, problem = _parsed(line)
        problem = problem or _object_problem(value, line, text, _may_be_deep(line))
        if records and (problem or len(records) == CHUNK_ROWS or size > CHUNK_CHARACTERS):
            yield Rows(str(path), lines, records=records, size=size)
            records, lines, size = [], [], 0
        if problem:
            yield BadRow(str(path), number, problem, line[:RAW_CHARACTERS])
        else:
            records.append(value)
            lines.append(number)
            size += len(line)
    if records:
        yield Rows(str(path), lines, records=records, size=size)


def json_rows(path: Path, text: TextIO) -> Iterator[Rows | BadRow]:
    whole = text.read(MAX_JSON_BYTES + 1)
    if len(whole) > MAX_JSON_BYTES:
        raise UserError(json_too_large(path))
    if sum(map(whole.count, "[{,")) > MAX_JSON_VALUES:
        raise UserError(
            f"{path}: more than {MAX_JSON_VALUES:,} values in one .json; convert it to .jsonl, one row per line"
        )
    rows, problem = _parsed(whole)
    if isinstance(rows, dict):
        lists = [v for v in rows.values() if isinstance(v, list) and any(isinstance(row, dict) for row in v)]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: {problem or 'expected a list of objects, or an object with exactly one such list'}")
    deep = _may_be_deep(whole)
    judged = ((number, _object_problem(row, whole, text, deep)) for number, row in enumerate(rows, 1))
    for good, group in itertools.groupby(judged, key=lambda item: item[1] is None):
        while good and (lines := [number for number, _ in itertools.islice(group, CHUNK_ROWS)]):
            yield Rows(str(path), lines, records=rows[lines[0] - 1 : lines[-1]])
        for number, problem in group:
            yield BadRow(str(path), number, str(problem), json.dumps(rows[number - 1])[:RAW_CHARACTERS])


def _parsed(text: str) -> tuple[Any, str | None]:
    try:
        return json.loads(text.removeprefix("\ufeff")), None  # concatenated files each have a byte order mark
    except (ValueError, RecursionError) as error:  # malformed, or a number with too many digits; nested too deeply
        return None, f"not JSON: {one_line(error)}"


def _may_be_deep(written: str) -> bool:
    return written.count("[") + written.count("{") > MAX_DEPTH


def _object_problem(value: object, written: str, text: TextIO, may_be_deep: bool) -> str | None:
    if not isinstance(value, dict):
        return "not an object"
    if len(value) > MAX_COLUMNS:
        return f"has {len(value):,} keys; at most {MAX_COLUMNS:,}"
    if may_be_deep and is_deep(value):
        return f"nested deeper than {MAX_DEPTH} levels"
    may_hold = text.errors != "strict" or "\\u" in written
    return text_problem(json.dumps(value, ensure_ascii=False), text) if may_hold else None

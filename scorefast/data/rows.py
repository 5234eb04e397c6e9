"""Rows as read from a file, and their bounds. Imports no torch."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from scorefast.files.bounded import MAX_COLUMNS
from scorefast.files.text import listed

CHUNK_ROWS, CHUNK_CHARACTERS = 4096, 2**24  # most rows of a chunk; characters, one row beyond them included
MAX_JSON_BYTES, MAX_JSON_VALUES = 2**30, 5 * 10**7  # of a .json file, which is read whole; values are estimated
RAW_CHARACTERS = 2000  # of a bad row, kept to show it


class Row(NamedTuple):
    file: str
    line: int  # 1-based line on which the row begins; in .json, Parquet and data sets the 1-based row number
    values: dict[str, object]


class Rows(NamedTuple):
    """Rows of one file: as `columns`, each as long as `lines`, or as `records` where keys may differ by row."""

    file: str
    lines: Sequence[int]  # as Row.line
    columns: Mapping[str, Sequence[object]] = {}
    records: Sequence[dict[str, object]] = ()
    size: int = 0  # approximate characters

    def names(self) -> dict[str, None]:
        return dict.fromkeys([*self.columns, *(name for record in self.records for name in record)])

    def column(self, name: str) -> Sequence[object]:
        """The values of a column; None where a row lacks it."""
        if self.records:
            return [record.get(name) for record in self.records]
        return self.columns.get(name) or [None] * len(self.lines)

    def values(self, i: int) -> dict[str, object]:
        return self.records[i] if self.records else {name: column[i] for name, column in self.columns.items()}


class BadRow(NamedTuple):
    file: str
    line: int
    reason: str
    raw: str  # its first RAW_CHARACTERS characters


def header_problem(names: list[str]) -> str | None:
    if names and names[0].lower().startswith("sep="):
        return "its first line is Excel's `sep=`: delete that line"
    if len(names) > MAX_COLUMNS:
        return f"has {len(names):,} columns; at most {MAX_COLUMNS:,}"
    if "" in names:
        return f"column {names.index('') + 1} of {len(names)} has no name in the header"
    if twice := [name for name, times in collections.Counter(names).items() if times > 1]:
        return f"the header names {listed(twice)} more than once"
    return None if names else "the file is empty"


def text_problem(part: str, text: TextIO) -> str | None:
    if "\0" in part:
        return "NUL character"
    if re.search("[\udc80-\udcff]", part) and text.errors != "strict":
        return f"not {text.encoding.removesuffix('-sig').upper()}"
    return "half a surrogate pair" if re.search("[\ud800-\udfff]", part) else None


def json_too_large(path: Path) -> str:
    return f"{path}: a .json larger than {MAX_JSON_BYTES:,} bytes; convert it to .jsonl, one row per line"

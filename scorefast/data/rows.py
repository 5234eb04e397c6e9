"""Rows as they are read from a file, and the bounds of a row. Imports no torch."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from scorefast.files.bounded import MOST_COLUMNS
from scorefast.files.text import listed

if TYPE_CHECKING:
    pass

ROWS, CHARACTERS = 4096, 2**24  # the most rows of a file that are looked at together, and (one row more) text in them
LARGEST_WHOLE, MOST_VALUES = 2**30, 5 * 10**7  # bytes of a .json file, and values in it, about: it is read whole
RAW_KEPT = 2000


class Row(NamedTuple):
    file: str
    line: int  # 1-based, on which the row begins; in .json, Parquet and datasets the 1-based number of the row
    values: dict[str, Any]


class Rows(NamedTuple):
    """Rows of one file: `columns` as long as `lines`, or `records` where rows may have keys of their own."""

    file: str
    lines: Sequence[int]  # as Row.line
    columns: Mapping[str, Sequence[Any]] = {}
    records: Sequence[dict[str, Any]] = ()
    size: int = 0  # characters in them, about

    def names(self) -> dict[str, None]:
        return dict.fromkeys([*self.columns, *(name for record in self.records for name in record)])

    def column(self, name: str) -> Sequence[Any]:
        """None where a row has nothing of that name."""
        if self.records:
            return [record.get(name) for record in self.records]
        return self.columns.get(name) or [None] * len(self.lines)

    def values(self, i: int) -> dict[str, Any]:
        return self.records[i] if self.records else {name: column[i] for name, column in self.columns.items()}


class BadRow(NamedTuple):
    file: str
    line: int
    reason: str
    raw: str  # the first RAW_KEPT characters of it


def header_problem(names: list[str]) -> str | None:
    if names and names[0].lower().startswith("sep="):
        return "its first line is Excel's `sep=`: delete that line"
    if len(names) > MOST_COLUMNS:
        return f"has {len(names):,} columns; at most {MOST_COLUMNS:,}"
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


def too_large(path: Path) -> str:
    return f"{path}: larger than the {LARGEST_WHOLE:,} bytes that a .json may have; make it a .jsonl, a row a line"

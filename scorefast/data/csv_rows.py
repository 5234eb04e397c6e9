"""Rows of CSV and TSV files. Imports no torch."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from scorefast.data.compressed import kind_of
from scorefast.data.rows import CHUNK_CHARACTERS, CHUNK_ROWS, RAW_CHARACTERS, BadRow, Rows, header_problem, text_problem
from scorefast.errors import UserError
from scorefast.files.lines import LARGEST_CELL, bounded_lines


class _RowLines:
    """Lines for csv.reader. Keeps the lines of the current row until the next row begins."""

    def __init__(self, lines: Iterator[str], path: Path, number: int):
        self.kept: list[str] = []
        self._lines, self._path, self._number = lines, path, number
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._lines, self._number):
            self.kept.append(line)
            self._length += len(line)
            if self._length > 2 * LARGEST_CELL:
                first = number - len(self.kept) + 1
                raise UserError(f"{self._path}: line {first}: a row of more than {2 * LARGEST_CELL:,} characters")
            yield line

    def begin(self) -> None:
        self.kept.clear()
        self._length = 0


def _delimiter(path: Path, first: str, note: Callable[[str], None]) -> str:
    if kind_of(path) == ".tsv":
        return "\t"
    head = next(csv.reader([first]), [])
    other = next((d for d in "\t;" if d in head[0]), "") if len(head) == 1 else ""
    if other:
        note(f"{path}: the header has no comma: assumed the delimiter {other!r}")
    return other or ","


def csv_rows(path: Path, text: TextIO, note: Callable[[str], None]) -> Iterator[Rows | BadRow]:
    csv.field_size_limit(LARGEST_CELL)
    every = bounded_lines(text, path, 2 * LARGEST_CELL)  # csv itself refuses a cell above LARGEST_CELL
    blank, first = next(((n, line) for n, line in enumerate(every) if line.strip()), (0, ""))
    source = _RowLines(itertools.chain([first], every), path, blank + 1)
    try:
        reader = csv.reader(source, delimiter=_delimiter(path, first, note), strict=True)
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{path}: line {blank + 1}: {error}") from None
    if problem := header_problem(names) or text_problem("".join(names), text):
        raise UserError(f"{path}: {problem}")
    file, width, suspect = str(path), len(names), text.errors != "strict"
    rows: list[list[str]] = []
    lines: list[int] = []
    size = 0  # characters in `rows`, plus one for each cell

    def chunk() -> Iterator[Rows]:
        nonlocal size
        if rows:
            yield Rows(file, lines[:], dict(zip(names, zip(*rows, strict=True), strict=True)), size=size)
            rows.clear()
            lines.clear()
            size = 0

    def bad(problem: str) -> BadRow:
        return BadRow(file, blank + line + 1, problem, "".join(source.kept)[:RAW_CHARACTERS])

    while True:
        line = reader.line_num  # before the row
        source.begin()
        try:
            for cells in reader:
                problem = text_problem("".join(cells), text) if suspect else None
                if len(cells) == width and not problem:
                    rows.append(cells)
                    lines.append(blank + line + 1)
                    size += width + sum(map(len, cells))
                elif cells:
                    yield from chunk()
                    yield bad(problem or f"{len(cells)} cells, the header has {width}")
                line = reader.line_num
                source.begin()
                if len(rows) == CHUNK_ROWS or size > CHUNK_CHARACTERS:
                    yield from chunk()
            yield from chunk()
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                where = f"{path}: line {blank + line + 1}"
                raise UserError(f"{where}: a quote in this row is never closed ({error})") from None
            yield from chunk()
            yield bad(f"not CSV: {error} in lines {blank + line + 1} to {blank + reader.line_num}")

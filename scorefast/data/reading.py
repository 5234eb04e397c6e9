"""Read a source in one pass: usable rows by column, every other row with its reason. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorefast.data.columns import Preset, find_preset, parse_rows
from scorefast.data.duplicates import number_keys
from scorefast.data.example import Dropped, Example
from scorefast.data.rows import BadRow, Rows
from scorefast.data.sources import read_chunks
from scorefast.data.splits import hash_positions, question_digest, splits_at
from scorefast.errors import UserError
from scorefast.files.text import normalized
from scorefast.schema import Data

_LINE_BITS = 40  # low bits of a place: the line; the bits above: the file
MAX_BAD_SHARE = 0.01  # of the rows; above it data.on_error decides


class Kept(NamedTuple):
    """Usable rows by column: the fields of Example, and the split, `number_keys` and place of each row."""

    columns: dict[str, Sequence[object]]
    splits: NDArray[np.intp]  # (n,) positions in SPLITS
    keys: NDArray[np.int64]  # (n,)
    places: NDArray[np.int64]  # (n,) position of the file in `Reading.files` << _LINE_BITS | line


@dataclass
class Reading:
    """One pass over a source's rows, with running counts of rows read and dropped."""

    source: str
    settings: Data
    against: Mapping[bytes, str] = field(default_factory=dict)  # {digest of a forbidden question: its benchmark}
    presets: dict[str, Preset] = field(default_factory=dict)  # by file
    rows_read: int = 0
    size: int = 0  # sum of Rows.size
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[Dropped] = field(default_factory=list)  # the first three
    bad_rows: int = 0
    files: list[str] = field(default_factory=list)

    def __call__(
        self,
        note: Callable[[str], None] = lambda line: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Kept | Dropped]:
        """Yields a few thousand usable rows at a time, and each other row as Dropped.

        Raises UserError naming file and row.
        """
        seen: dict[bytes, int] = {}
        for part in read_chunks(self.source, encoding=self.settings.encoding, note=note, progress=progress):
            if isinstance(part, BadRow):
                self.rows_read += 1
                yield self._drop(part.file, part.line, part.reason, part.raw, bad=True)
            else:
                self.rows_read += len(part.lines)
                self.size += part.size
                yield from self._examine(part, seen, note)
        self._require_usable()

    def _examine(self, rows: Rows, seen: dict[bytes, int], note: Callable[[str], None]) -> Iterator[Kept | Dropped]:
        file = rows.file
        if file not in self.presets:
            self.presets[file] = find_preset(rows, self.settings, note)
            self.files.append(file)
        texts, extra, problems = parse_rows(rows, self.presets[file], self.settings.columns)
        normal_forms = list(map(normalized, texts["question"]))
        digests = list(map(question_digest, normal_forms))
        usable = []
        for i, (digest, correct) in enumerate(zip(digests, texts["correct_answer"], strict=True)):
            key, answer = digest[:16], hash(correct)
            if i in problems:
                yield self._drop(file, rows.lines[i], problems[i], rows.values(i), bad=True)
            elif digest in self.against:
                yield self._drop(file, rows.lines[i], f"also in {self.against[digest]}", rows.values(i))
            elif key in seen:
                reason = "repeated question" if seen[key] == answer else "repeated question with another correct_answer"
                yield self._drop(file, rows.lines[i], reason, rows.values(i))
            else:
                seen[key] = answer
                usable.append(i)
        if not usable:
            return
        columns: dict[str, Sequence[object]] = {"id": [digest[:8].hex() for digest in digests]}
        columns |= {name: [value or None for value in column] for name, column in texts.items()}
        columns["extra"] = extra
        if len(usable) < len(digests):
            columns = {name: [column[i] for i in usable] for name, column in columns.items()}
        yield Kept(
            columns,
            splits_at(hash_positions(digests)[usable], self.settings),
            number_keys(normal_forms)[usable],
            np.array(rows.lines)[usable] + (self.files.index(file) << _LINE_BITS),
        )

    def drop_near_duplicate(self, place: int, example: Example, leak: tuple[str, str]) -> Dropped:
        """Count a near duplicate that `find_leaks` found as dropped."""
        file, line = self.files[place >> _LINE_BITS], place & (1 << _LINE_BITS) - 1
        return self._drop(file, line, leak[0], example._asdict() | {"nearly": leak[1]})

    def _drop(self, file: str, line: int, reason: str, row: object, bad: bool = False) -> Dropped:
        dropped = Dropped(file, line, reason, row, bad)
        self.dropped[dropped.kind] += 1
        self.bad_rows += bad
        if bad and len(self.bad) < 3:
            self.bad.append(dropped)
        return dropped

    def _require_usable(self) -> None:
        if not self.rows_read:
            raise UserError(f"{self.source}: no usable row: it has no rows")
        if self.bad_rows == self.rows_read:
            raise UserError(f"{self.source}: no usable row: {self._bad_rows_summary()}")
        if self.settings.on_error == "stop" and self.bad_rows > MAX_BAD_SHARE * self.rows_read:
            raise UserError(
                f"{self.source}: {self.bad_rows} of {self.rows_read} rows are bad, more than {MAX_BAD_SHARE:.0%}: "
                f"{self._bad_rows_summary()}. Fix them, or leave them out with --on-error skip"
            )

    def _bad_rows_summary(self) -> str:
        more = f"; and {self.bad_rows - len(self.bad)} more" if self.bad_rows > len(self.bad) else ""
        return "; ".join(map(str, self.bad)) + more


def concatenated(parts: Sequence[Kept]) -> Kept:
    columns: dict[str, Sequence[object]] = {n: [v for part in parts for v in part.columns[n]] for n in Example._fields}
    none = [np.empty(0, dtype=np.int64)]
    arrays = (np.concatenate(none + [getattr(part, name) for part in parts]) for name in Kept._fields[1:])
    return Kept(columns, *arrays)

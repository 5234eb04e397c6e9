"""One example, one row that was dropped, and a data set of both. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from scorefast.errors import UserError
from scorefast.schema import GraderName

COLUMNS = ("question", "original_answer", "correct_answer")
OPTIONAL = ("grader", "original_answer_by")
LONGEST = 100_000  # characters of a text: several times what a model reads at once, a second of its tokenizer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "train")


class Example(NamedTuple):
    """grader: of this row alone. original_answer_by: the model that wrote it, None for the source. extra: the source's
    columns that have none of these names, for reward functions."""

    id: str
    question: str
    original_answer: str | None
    correct_answer: str
    grader: GraderName | None = None
    original_answer_by: str | None = None
    extra: Mapping[str, Any] | None = None


class Dropped(NamedTuple):
    """A row that is not used. bad: something is wrong with it (a repeated question is no fault of its row)."""

    file: str
    line: int | None
    reason: str
    row: Any
    bad: bool = False

    @property
    def kind(self) -> str:
        """The reason without the particulars of its row: `not JSON`, not `not JSON: Expecting ...`."""
        return re.split(r": | in lines | '|, the header|, not text", self.reason)[0] if self.bad else self.reason

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """Examples by split, and what was dropped on the way, by reason."""

    source: str
    rows_read: int
    dropped: dict[str, int]
    splits: dict[Split, list[Example]]
    dropped_rows: tuple[Dropped, ...] = ()

    @property
    def rows_kept(self) -> int:
        return sum(len(examples) for examples in self.splits.values())

    def __str__(self) -> str:
        return f"{self.source} ({', '.join(f'{len(self.splits[name])} {name}' for name in SPLITS)} questions)"

    def split(self, name: Split, purpose: str) -> list[Example]:
        if not self.splits[name]:
            raise UserError(f"{self.source}: no row falls into the {name} split, needed for {purpose}")
        return self.splits[name]

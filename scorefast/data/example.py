"""An example, a dropped row, and a data set of both. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scorefast.errors import UserError
from scorefast.schema import GraderName

COLUMNS = ("question", "original_answer", "correct_answer")
OPTIONAL = ("grader", "original_answer_by")
MAX_CHARACTERS = 100_000  # of a text: several context windows, and about a second of tokenizing

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "train")


class Example(NamedTuple):
    """One question with its answers.

    grader: overrides the recipe's grader for this row. original_answer_by: the model that wrote the original answer;
    None if it came with the source. extra: the source's other columns, for reward functions.
    """

    id: str
    question: str
    original_answer: str | None
    correct_answer: str
    grader: GraderName | None = None
    original_answer_by: str | None = None
    extra: Mapping[str, object] | None = None


class Dropped(NamedTuple):
    """A row that is not used. bad: the row itself is faulty; a repeated question is not a fault."""

    file: str
    line: int | None
    reason: str
    row: object
    bad: bool = False

    @property
    def kind(self) -> str:
        """The reason without the details of the row: `not JSON`, not `not JSON: Expecting ...`."""
        return re.split(r": | in lines | '|, the header|, not text", self.reason)[0] if self.bad else self.reason

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """Examples by split, and the number of dropped rows by reason."""

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
            raise UserError(f"{self.source}: no row is in the {name} split, which {purpose} needs")
        return self.splits[name]

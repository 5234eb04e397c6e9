"""Rows in, checked and split examples out. Imports no torch.

A row is `question, original_answer, correct_answer`; original_answer may be missing or blank (None then): on-policy
methods sample their own first attempts. Which split a question belongs to follows from its text alone. Every row that
is not used is counted by reason and kept to be shown: nothing vanishes.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from scorefast.duplicates import near_duplicates, number_key
from scorefast.presets import Preset, find_preset, parse_rows, text_of
from scorefast.recipe import Data, GraderName, UserError
from scorefast.sources import BadRow, Row, read_rows, source_files

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "train")
MANIFEST = "manifest.json"
CHUNK = 4096  # rows looked at together
TOLERATED = 0.01  # share of bad rows up to which reading goes on by itself


class Example(NamedTuple):
    """grader: of this row alone. original_answer_by: the model that wrote it, None for the source. extra: the source's
    other columns, for reward functions."""

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


def normalized(text: str) -> str:
    """NFKC, case-folded, white space collapsed: two questions with the same normal form are the same question."""
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _digest(normal_form: str) -> bytes:
    return hashlib.sha256(normal_form.encode()).digest()


def _position(digest: bytes) -> float:
    return int.from_bytes(digest[:6], "big") * 2.0**-48


def split_position(question: str) -> float:
    """Where a question stands in [0, 1), by SHA-256 of its normal form: the same on every machine, for ever.

    A split is an interval of it, so adding rows never moves a row from one split to another.
    """
    return _position(_digest(normalized(question)))


def split_of(question: str, settings: Data) -> Split:
    """test = [0, t), validation = [t, t + v), train = [t + v, 1) of `split_position`."""
    return _split_at(split_position(question), settings.test_fraction, settings.validation_fraction)


def _split_at(position: float, test: float, validation: float) -> Split:
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"


def fractions(settings: Data) -> dict[str, float]:
    return {"test_fraction": settings.test_fraction, "validation_fraction": settings.validation_fraction}


# --- reading -----------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """One pass over a source's rows; what was read and dropped is counted as it goes."""

    source: str
    settings: Data
    against: Mapping[bytes, str] = field(default_factory=dict)  # digests of questions that must not stand in the data
    presets: dict[str, Preset] = field(default_factory=dict)  # by file
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[Dropped] = field(default_factory=list)  # the first few
    bad_rows: int = 0

    def __call__(
        self,
        note: Callable[[str], None] = lambda line: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[Split, Example, int] | Dropped]:
        """Each usable row with its split and `number_key`, each other one with the reason. Raises UserError naming file
        and row."""
        seen: dict[bytes, int] = {}
        rows = read_rows(self.source, encoding=self.settings.encoding, note=note, progress=progress)
        while chunk := list(islice(rows, CHUNK)):
            self.rows_read += len(chunk)
            for file, group in groupby(chunk, key=lambda row: None if isinstance(row, BadRow) else row.file):
                if file is None:
                    for row in group:
                        yield self._drop(row.file, row.line, row.reason, row.raw, bad=True)  # type: ignore[union-attr]
                else:
                    yield from self._examples(file, list(group), seen)  # type: ignore[arg-type]
        self._judge()

    def _examples(
        self, file: str, rows: list[Row], seen: dict[bytes, int]
    ) -> Iterator[tuple[Split, Example, int] | Dropped]:
        if file not in self.presets:
            self.presets[file] = find_preset(
                file, list(dict.fromkeys(k for r in rows for k in r.values)), self.settings
            )
        parsed, problems = parse_rows([row.values for row in rows], self.presets[file], self.settings.columns)
        normal_forms = [normalized(row[0]) for row in parsed]
        test, validation = self.settings.test_fraction, self.settings.validation_fraction
        for i, (row, normal_form) in enumerate(zip(parsed, normal_forms, strict=True)):
            if i in problems:
                yield self._drop(file, rows[i].line, problems[i], rows[i].values, bad=True)
                continue
            question, original, correct, grader, author, extra = row
            digest = _digest(normal_form)
            key, answer = digest[:16], hash(correct)
            if digest in self.against:
                yield self._drop(file, rows[i].line, f"stands in {self.against[digest]}", rows[i].values)
            elif key in seen:
                reason = "repeated question" if seen[key] == answer else "repeated question with another correct_answer"
                yield self._drop(file, rows[i].line, reason, rows[i].values)
            else:
                seen[key] = answer
                split = _split_at(_position(digest), test, validation)
                example = Example(
                    digest[:8].hex(), question, original or None, correct, grader or None, author or None, extra
                )
                yield split, example, number_key(normal_form)

    def _drop(self, file: str, line: int, reason: str, row: Any, bad: bool = False) -> Dropped:
        dropped = Dropped(file, line, reason, row, bad)
        self.dropped[dropped.kind] += 1
        self.bad_rows += bad
        if bad and len(self.bad) < 3:
            self.bad.append(dropped)
        return dropped

    def _judge(self) -> None:
        if not self.rows_read:
            raise UserError(f"{self.source}: no usable row: it has no rows")
        if self.bad_rows == self.rows_read:
            raise UserError(f"{self.source}: no usable row: {self._shown()}")
        if self.settings.on_error == "stop" and self.bad_rows > TOLERATED * self.rows_read:
            raise UserError(
                f"{self.source}: {self.bad_rows} of {self.rows_read} rows are bad, more than {TOLERATED:.0%}: "
                f"{self._shown()}. Mend them, or leave them out with --on-error skip"
            )

    def _shown(self) -> str:
        more = f"; and {self.bad_rows - len(self.bad)} more" if self.bad_rows > len(self.bad) else ""
        return "; ".join(map(str, self.bad)) + more


def load_dataset(source: str, settings: Data, note: Callable[[str], None] = lambda line: None) -> Dataset:
    """Any source that `sources` reads, or a folder that `scorefast prepare` wrote with the same split fractions.

    Raises UserError naming the file, and the row or the columns where it can.
    """
    if is_prepared(source):
        return _load_prepared(Path(source), settings)
    reading = Reading(source, settings)
    splits: dict[Split, list[Example]] = {name: [] for name in SPLITS}
    keys: dict[Split, list[int]] = {name: [] for name in SPLITS}
    dropped: list[Dropped] = []
    for item in reading(note):
        if isinstance(item, Dropped):
            dropped.append(item)
        else:
            splits[item[0]].append(item[1])
            keys[item[0]].append(item[2])
    questions = {name: [e.question for e in splits[name]] for name in SPLITS}
    leaks = find_leaks(questions, keys, settings.near_duplicates)
    for name in SPLITS if leaks.dropped else ():
        verdicts = [leaks.of(e, source) for e in splits[name]]
        dropped += filter(None, verdicts)
        reading.dropped.update(leak.reason for leak in verdicts if leak)
        splits[name] = [e for e, leak in zip(splits[name], verdicts, strict=True) if not leak]
    return Dataset(source, reading.rows_read, dict(reading.dropped), splits, tuple(dropped))


@dataclass(frozen=True)
class Leaks:
    """dropped: normal form of a question -> (reason, the normal form that it nearly repeats). kept: pairs of near
    duplicates within one split."""

    dropped: dict[str, tuple[str, str]]
    kept: int

    def of(self, example: Example, source: str) -> Dropped | None:
        """Why this example is to be dropped, with the question that it nearly repeats; None where it is not."""
        if not (found := self.dropped.get(normalized(example.question))):
            return None
        return Dropped(source, None, found[0], example._asdict() | {"nearly": found[1]})


def find_leaks(
    questions: Mapping[Split, Iterable[str]],
    keys: Mapping[Split, Sequence[int]],
    threshold: float,
    against: Sequence[str] = (),
    name: str = "",
) -> Leaks:
    """Near duplicates across splits, and of the questions of `against`: the copy nearer to training is to be dropped.

    questions: by split, read only where a `number_key` of `keys` comes more than once. threshold: of the Jaccard
    index; 0 looks for none.
    """
    if not threshold:
        return Leaks({}, 0)
    benchmark = f"question of {name}"
    sources = {benchmark: against} | {f"{split} question": questions[split] for split in HELD_OUT_FIRST}
    all_keys = np.array([number_key(normalized(q)) for q in against], dtype=np.int64)
    all_keys = np.concatenate([all_keys, *(np.array(keys[split], dtype=np.int64) for split in HELD_OUT_FIRST)])
    places = np.repeat(np.arange(4), [len(against), *(len(keys[split]) for split in HELD_OUT_FIRST)])
    dropped: dict[str, tuple[str, str]] = {}

    def texts(wanted: np.ndarray) -> Iterator[str]:
        everywhere = (question for asked in sources.values() for question in asked)
        return (normalized(question) for question, is_wanted in zip(everywhere, wanted, strict=True) if is_wanted)

    names = list(sources)
    alive = np.ones(len(all_keys), dtype=bool)
    while True:  # among many alike, one pass compares each with its neighbours only
        found = near_duplicates(all_keys, texts, threshold, alive)
        across = [pair for pair in found if places[pair[0][0]] != places[pair[1][0]]]
        for (i, earlier), (j, later) in across:
            dropped.setdefault(later, (f"near duplicate of a {names[places[i]]}", earlier))
            alive[j] = False
        if not across:
            return Leaks(dropped, sum(int(places[i]) > 0 for (i, _), _ in found))


def read_questions(source: str, note: Callable[[str], None] = lambda line: None) -> list[str]:
    """The questions of a benchmark to check against: any source with a question, problem or messages column. What
    cannot be read of it is noted. Raises UserError where nothing can."""
    if is_prepared(source):
        return [e.question for examples in _load_prepared(Path(source), None).splits.values() for e in examples]
    found, unread = [], 0
    for row in read_rows(source, note=note):
        text = _question(row.values, source) if isinstance(row, Row) else ""
        unread += not text
        found += [text] if text else []
    if unread:
        note(f"{source}: {unread} rows without a readable question, not checked against")
    if not found:
        raise UserError(f"{source}: no question to check against")
    return found


def _question(row: Mapping[str, Any], source: str) -> str:
    name = next((name for name in ("question", "problem", "messages") if name in row), None)
    if name is None:
        raise UserError(f"{source}: has no column question, problem or messages; it has {', '.join(row)}")
    if name != "messages":
        return text_of(row[name], name, 0, {})
    messages = [m for m in row["messages"] if isinstance(m, Mapping)] if isinstance(row["messages"], list) else []
    return next((str(m.get("content") or "").strip() for m in messages if m.get("role") == "user"), "")


def digests(questions: Iterable[str], name: str) -> dict[bytes, str]:
    return {_digest(normalized(question)): name for question in questions}


# --- prepared folders --------------------------------------------------------------------------------------------


def is_prepared(source: str) -> bool:
    return (Path(source) / MANIFEST).is_file()


def content_sha256(source: str) -> str:
    """SHA-256 of a source's files (of a prepared folder's manifest, which holds those of its files)."""
    if is_prepared(source):
        return file_sha256(Path(source) / MANIFEST)
    if source.startswith("hub:"):  # what was loaded is hashed as prepared files are; here its name has to do
        return hashlib.sha256(source.encode()).hexdigest()
    hashes = [file_sha256(path) for path in source_files(source)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_columns(examples: Sequence[Example]) -> dict[str, list[str | None]]:
    """Examples as they stand in a prepared Parquet file: texts all, `extra` as JSON."""
    columns: dict[str, list[Any]] = dict(zip(Example._fields, map(list, zip(*examples, strict=True)), strict=False))
    columns = columns or {name: [] for name in Example._fields}
    columns["extra"] = [json.dumps(e, ensure_ascii=False, default=str) if e else None for e in columns["extra"]]
    return columns


def from_columns(row: Mapping[str, Any]) -> Example:
    extra = row.get("extra")
    return Example(**{**row, "extra": json.loads(extra) if extra else None})


def _load_prepared(folder: Path, settings: Data | None) -> Dataset:
    import pyarrow.parquet as pq

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected, source, begun = manifest["sha256"], manifest["source"], manifest["split_fractions"]
        rows_read, dropped = manifest["rows_read"], manifest["dropped"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / MANIFEST}: not a manifest; run `scorefast prepare` again") from None
    if settings is not None and begun != fractions(settings):
        shown = [", ".join(f"{k}={v}" for k, v in f.items()) for f in (begun, fractions(settings))]
        raise UserError(
            f"{folder}: was prepared with {shown[0]}, the recipe in force says {shown[1]}; prepare it again"
        )
    splits: dict[Split, list[Example]] = {}
    for name in SPLITS:
        path = folder / f"{name}.parquet"
        if not path.is_file() or file_sha256(path) != expected.get(path.name):
            raise UserError(f"{path}: missing or changed since it was prepared; run `scorefast prepare` again")
        splits[name] = [from_columns(row) for row in pq.read_table(path).to_pylist()]
    return Dataset(f"{folder} (from {source})", rows_read, dropped, splits)

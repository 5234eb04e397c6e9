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
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from scorefast.duplicates import near_duplicates, number_keys
from scorefast.durable import file_sha256
from scorefast.presets import ASKED, LONGEST, Preset, find_preset, parse_rows, question_of
from scorefast.recipe import Data, GraderName, UserError
from scorefast.sources import DEEPEST, BadRow, Row, Rows, is_deep, read_chunks, read_rows, source_files
from scorefast.untrusted import listed, one_line, read_json, shortened

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "train")
MANIFEST = "manifest.json"
_LINES = 40  # bits of a place that hold the line, below the number of the file
FAMILY = 0.1  # share of a split's questions left out as near duplicates that is worth a word
TOLERATED = 0.01  # share of bad rows up to which reading goes on by itself


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


class Kept(NamedTuple):
    """Usable rows by column: the fields of Example, and of each row its split, `number_keys` and place."""

    columns: dict[str, Sequence[Any]]
    splits: np.ndarray  # (n,) positions in SPLITS
    keys: np.ndarray  # (n,) int64
    places: np.ndarray  # (n,) int64: the line, and above _LINES bits the position of its file in `Reading.files`


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


def _positions(digests: Sequence[bytes]) -> np.ndarray:
    """The first 48 bits of each digest as a fraction."""
    return (np.frombuffer(b"".join(digests), ">u8")[::4] >> np.uint64(16)) * 2.0**-48


def split_position(question: str) -> float:
    """Where a question stands in [0, 1), by SHA-256 of its normal form: the same on every machine, for ever.

    A split is an interval of it, so adding rows never moves a row from one split to another.
    """
    return float(_positions([_digest(normalized(question))])[0])


def split_of(question: str, settings: Data) -> Split:
    """test = [0, t), validation = [t, t + v), train = [t + v, 1) of `split_position`."""
    return SPLITS[_splits_at(np.array([split_position(question)]), settings)[0]]


def _splits_at(positions: np.ndarray, settings: Data) -> np.ndarray:
    """Positions in SPLITS."""
    test, validation = settings.test_fraction, settings.validation_fraction
    return np.select([positions < test, positions < test + validation], [2, 1], 0)


def split_settings(settings: Data) -> dict[str, float]:
    """What decides which side of a split a question stands on."""
    return settings.model_dump(include={"test_fraction", "validation_fraction", "near_duplicates"})


# --- reading -----------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """One pass over a source's rows; what was read and dropped is counted as it goes."""

    source: str
    settings: Data
    against: Mapping[bytes, str] = field(default_factory=dict)  # digests of questions that must not stand in the data
    presets: dict[str, Preset] = field(default_factory=dict)  # by file
    rows_read: int = 0
    size: int = 0  # as Rows.size, of all that was read
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[Dropped] = field(default_factory=list)  # the first few
    bad_rows: int = 0
    files: list[str] = field(default_factory=list)

    def __call__(
        self,
        note: Callable[[str], None] = lambda line: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Kept | Dropped]:
        """Some thousand usable rows at a time, and each other one with the reason. Raises UserError naming file and
        row."""
        seen: dict[bytes, int] = {}
        for part in read_chunks(self.source, encoding=self.settings.encoding, note=note, progress=progress):
            if isinstance(part, BadRow):
                self.rows_read += 1
                yield self._drop(part.file, part.line, part.reason, part.raw, bad=True)
            else:
                self.rows_read += len(part.lines)
                self.size += part.size
                yield from self._examine(part, seen, note)
        self._judge()

    def _examine(self, rows: Rows, seen: dict[bytes, int], note: Callable[[str], None]) -> Iterator[Kept | Dropped]:
        file = rows.file
        if file not in self.presets:
            self.presets[file] = find_preset(rows, self.settings, note)
            self.files.append(file)
        parsed, problems = parse_rows(rows, self.presets[file], self.settings.columns)
        normal_forms = list(map(normalized, parsed["question"]))
        digests = list(map(_digest, normal_forms))
        usable = []
        for i, (digest, correct) in enumerate(zip(digests, parsed["correct_answer"], strict=True)):
            key, answer = digest[:16], hash(correct)
            if i in problems:
                yield self._drop(file, rows.lines[i], problems[i], rows.values(i), bad=True)
            elif digest in self.against:
                yield self._drop(file, rows.lines[i], f"stands in {self.against[digest]}", rows.values(i))
            elif key in seen:
                reason = "repeated question" if seen[key] == answer else "repeated question with another correct_answer"
                yield self._drop(file, rows.lines[i], reason, rows.values(i))
            else:
                seen[key] = answer
                usable.append(i)
        if not usable:
            return
        columns: dict[str, Sequence[Any]] = {"id": [digest[:8].hex() for digest in digests]}
        columns |= {name: [value or None for value in column] for name, column in parsed.items()}
        if len(usable) < len(digests):
            columns = {name: [column[i] for i in usable] for name, column in columns.items()}
        yield Kept(
            columns,
            _splits_at(_positions(digests)[usable], self.settings),
            number_keys(normal_forms)[usable],
            np.array(rows.lines)[usable] + (self.files.index(file) << _LINES),
        )

    def nearly_repeated(self, place: int, example: Example, leak: tuple[str, str]) -> Dropped:
        """A near duplicate that `find_leaks` found, counted as dropped."""
        file, line = self.files[place >> _LINES], place & (1 << _LINES) - 1
        return self._drop(file, line, leak[0], example._asdict() | {"nearly": leak[1]})

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
    """Any source that `sources` reads, or a folder that `scorefast prepare` wrote with the same `split_settings`.

    Raises UserError naming the file, and the row or the columns where it can.
    """
    if is_prepared(source):
        return _load_prepared(Path(source), settings, note)
    reading = Reading(source, settings)
    splits: dict[Split, list[Example]] = {name: [] for name in SPLITS}
    index = Index()
    dropped: list[Dropped] = []
    for part in reading(note):
        if isinstance(part, Dropped):
            dropped.append(part)
            continue
        index.add(part)
        for split, values in zip(part.splits.tolist(), zip(*part.columns.values(), strict=True), strict=True):
            splits[SPLITS[split]].append(Example(*values))
    questions = {name: [e.question for e in splits[name]] for name in SPLITS}
    leaks, _ = find_leaks(questions, index, settings.near_duplicates)
    note_families(leaks, questions, note)
    for name, found in leaks.items():
        places = index.places(name)
        dropped += [reading.nearly_repeated(places[i], splits[name][i], leak) for i, leak in found.items()]
        splits[name] = [e for i, e in enumerate(splits[name]) if i not in found]
    return Dataset(source, reading.rows_read, dict(reading.dropped), splits, tuple(dropped))


def joined(parts: Sequence[Kept]) -> Kept:
    columns: dict[str, Sequence[Any]] = {n: [v for part in parts for v in part.columns[n]] for n in Example._fields}
    none = [np.empty(0, dtype=np.int64)]
    arrays = (np.concatenate(none + [getattr(part, name) for part in parts]) for name in Kept._fields[1:])
    return Kept(columns, *arrays)


class Index:
    """What is held in memory of the kept rows of each split: their `number_keys` and places, 16 bytes a row."""

    def __init__(self) -> None:
        self._parts: dict[Split, list[np.ndarray]] = {name: [np.empty((2, 0), dtype=np.int64)] for name in SPLITS}

    def add(self, part: Kept) -> None:
        both = np.stack([part.keys, part.places])
        for i, name in enumerate(SPLITS):
            self._parts[name].append(both[:, part.splits == i])

    def keys(self, name: Split) -> np.ndarray:
        return np.concatenate([keys for keys, _ in self._parts[name]])

    def places(self, name: Split) -> list[int]:
        found: list[int] = np.concatenate([places for _, places in self._parts[name]]).tolist()
        return found


def find_leaks(
    questions: Mapping[Split, Iterable[str]],
    index: Index,
    threshold: float,
    against: Sequence[str] = (),
    name: str = "",
) -> tuple[dict[Split, dict[int, tuple[str, str]]], int]:
    """Near duplicates across splits, and of the questions of `against`: the copy nearer to training is to be dropped.

    questions: by split, read only where a key of the index comes more than once. threshold: of the Jaccard index; 0
    looks for none. Returns ({split: {position in it: (reason, normal form of the question that it nearly repeats)}},
    pairs of near duplicates within one split, which stay).
    """
    leaks: dict[Split, dict[int, tuple[str, str]]] = {}
    if not threshold:
        return leaks, 0
    benchmark = f"question of {name}"
    sources = {benchmark: against} | {f"{split} question": questions[split] for split in HELD_OUT_FIRST}
    parts = [number_keys(map(normalized, against)), *map(index.keys, HELD_OUT_FIRST)]
    keys = np.concatenate(parts)
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    group = np.repeat(np.arange(4), list(map(len, parts)))

    def texts(wanted: np.ndarray) -> Iterator[str]:
        everywhere = (question for asked in sources.values() for question in asked)
        return (normalized(question) for question, is_wanted in zip(everywhere, wanted, strict=True) if is_wanted)

    names = list(sources)
    alive = np.ones(len(keys), dtype=bool)
    while True:  # among many alike, one pass compares each with its neighbours only
        found = near_duplicates(keys, texts, threshold, alive)
        across = [pair for pair in found if group[pair[0][0]] != group[pair[1][0]]]
        for (i, earlier), (j, _) in across:
            split = leaks.setdefault(HELD_OUT_FIRST[group[j] - 1], {})
            split.setdefault(j - starts[group[j]], (f"near duplicate of a {names[group[i]]}", earlier))
            alive[j] = False
        if not across:
            return leaks, sum(int(group[i]) > 0 for (i, _), _ in found)


def note_families(
    leaks: Mapping[Split, Mapping[int, Any]], questions: Mapping[Split, Iterable[str]], note: Callable[[str], None]
) -> None:
    """Says where so many of a split's questions are left out that they may be variants meant to stay."""
    for name, found in leaks.items():
        if len(found) > FAMILY * (rows := sum(1 for _ in questions[name])):
            note(
                f"{len(found)} of {rows} {name} questions nearly repeat held-out ones and are left out; if they are "
                "other questions to you, raise data.near_duplicates (0 looks for none)"
            )


def read_questions(source: str, note: Callable[[str], None] = lambda line: None) -> list[str]:
    """The questions of a benchmark to check against: any source with one of the columns ASKED. What cannot be read of
    it is noted. Raises UserError where nothing can."""
    if is_prepared(source):
        return [e.question for examples in _load_prepared(Path(source), None).splits.values() for e in examples]
    found, unread = [], 0
    for row in read_rows(source, note=note):
        values = row.values if isinstance(row, Row) else {"question": ""}
        text = question_of(values)
        if text is None:
            raise UserError(f"{source}: has no column {', '.join(ASKED)}; it has {listed(values)}")
        unread += not text
        found += [text] if text else []
    if unread:
        note(f"{source}: {unread} rows without a readable question, not checked against")
    if not found:
        raise UserError(f"{source}: no question to check against")
    return found


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


def from_columns(row: Mapping[str, Any]) -> Example:
    extra = row.get("extra")
    return Example(**{**row, "extra": json.loads(extra) if extra else None})


def _prepared_rows(path: Path) -> list[Example]:
    """Raises UserError, with the row's number, where `prepare` cannot have written it, whatever the manifest says."""
    try:
        return [_prepared_row(row) for row in read_rows(str(path))]
    except UserError as error:
        raise UserError(f"{path}: holds no prepared rows: {str(error).removeprefix(f'{path}: ')}") from None


def _prepared_row(row: Row | BadRow) -> Example:
    needed = {"id", "question", "correct_answer"}
    try:
        if isinstance(row, BadRow) or not needed <= row.values.keys() <= set(Example._fields):
            raise ValueError(f"its columns are not {', '.join(Example._fields)}")
        example = from_columns(row.values)
        for name, value in example._asdict().items():
            if name == "extra":
                if not isinstance(value, dict | None) or is_deep(value or {}):
                    raise ValueError(f"extra is no JSON object of at most {DEEPEST} levels")
            elif not isinstance(value, str if name in needed else str | None):
                raise ValueError(f"{name} is {shortened(repr(value), 60)}, which is no text")
            elif name in needed and not value.strip():
                raise ValueError(f"{name} is blank")
            elif value and len(value) > LONGEST:
                raise ValueError(f"{name} has more than {LONGEST:,} characters")
        if example.grader not in (None, *get_args(GraderName)):
            raise ValueError(f"grader is {shortened(repr(example.grader), 60)}; no grader has that name")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"row {row.line}: {one_line(error)}") from None
    return example


def _load_prepared(folder: Path, settings: Data | None, note: Callable[[str], None] = lambda line: None) -> Dataset:
    try:
        manifest = read_json(folder / MANIFEST)
        expected, source, read_as = dict(manifest["sha256"]), str(manifest["source"]), dict(manifest["read_as"])
        rows_read, dropped = int(manifest["rows_read"]), {str(k): int(n) for k, n in manifest["dropped"].items()}
        begun = {name: read_as[name] for name in split_settings(Data())}
    except (UserError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{folder / MANIFEST}: not a manifest; run `scorefast prepare` again") from None
    if settings is not None:
        if other := [name for name, value in split_settings(settings).items() if value != begun[name]]:
            shown = [", ".join(f"{name}={s[name]}" for name in other) for s in (begun, split_settings(settings))]
            raise UserError(
                f"{folder}: was prepared with {shown[0]}, the recipe in force says {shown[1]}; prepare it again"
            )
        for name, value in settings.model_dump(exclude_defaults=True).items():
            if value != read_as.get(name):
                note(f"{folder}: data.{name}={value} has no effect: it was prepared with {read_as.get(name)}")
    splits: dict[Split, list[Example]] = {}
    for name in SPLITS:
        path = folder / f"{name}.parquet"
        if not path.is_file() or file_sha256(path) != expected.get(path.name):
            raise UserError(f"{path}: missing or changed since it was prepared; run `scorefast prepare` again")
        splits[name] = _prepared_rows(path)
    return Dataset(f"{folder} (from {shortened(source)})", rows_read, dropped, splits)

"""Questions and answers in, checked and split examples out. Imports no torch.

A row is `question, original_answer, correct_answer`; original_answer may be missing or blank (None then): on-policy
methods sample their own first attempts. Which split a question belongs to follows from its text alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scorefast.recipe import Data, UserError

if TYPE_CHECKING:
    from scorefast.prompts import ChatFormat

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
COLUMNS = ("question", "original_answer", "correct_answer")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Example:
    id: str
    question: str
    original_answer: str | None
    correct_answer: str


@dataclass(frozen=True)
class Dataset:
    """Examples by split, and what was dropped on the way, by reason."""

    source: str
    rows_read: int
    dropped: dict[str, int]
    splits: dict[Split, list[Example]]

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
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _digest(question: str) -> bytes:
    return hashlib.sha256(normalized(question).encode()).digest()


def split_position(question: str) -> float:
    """Where a question stands in [0, 1), by SHA-256 of its normal form: the same on every machine, for ever.

    A split is an interval of it, so adding rows never moves a row from one split to another.
    """
    return int.from_bytes(_digest(question)[:6], "big") / 2**48


def split_of(question: str, settings: Data) -> Split:
    """test = [0, t), validation = [t, t + v), train = [t + v, 1) of `split_position`."""
    position = split_position(question)
    if position < settings.test_fraction:
        return "test"
    return "validation" if position < settings.test_fraction + settings.validation_fraction else "train"


def load_dataset(source: str, settings: Data) -> Dataset:
    """A CSV, JSONL or Parquet file, or a folder that `scorefast prepare` wrote with the same split fractions.

    Raises UserError naming the file, and the row or the columns where it can.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: no such file or folder")
    if path.is_dir():
        return _load_prepared(path, settings)
    rows = list(_read_rows(path))
    kept, dropped = _check_rows(rows)
    if not kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise UserError(f"{source}: no usable row" + (f" ({reasons})" if reasons else ": the file has no rows"))
    splits: dict[Split, list[Example]] = {name: [] for name in SPLITS}
    for example in kept:
        splits[split_of(example.question, settings)].append(example)
    return Dataset(source, len(rows), dict(dropped), splits)


def write_prepared(dataset: Dataset, settings: Data, out: Path, lengths: dict[str, Any] | None) -> dict[str, Any]:
    """One Parquet file a split, then the manifest: a folder without one was not finished. Returns the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in SPLITS:
        columns = {"id": [e.id for e in dataset.splits[name]]}
        columns |= {column: [getattr(e, column) for e in dataset.splits[name]] for column in COLUMNS}
        schema = pa.schema([(column, pa.string()) for column in columns])
        pq.write_table(pa.table(columns, schema=schema), out / f"{name}.parquet")
        files[f"{name}.parquet"] = file_sha256(out / f"{name}.parquet")
    manifest = {
        "source": dataset.source,
        "source_sha256": file_sha256(Path(dataset.source)),
        "rows_read": dataset.rows_read,
        "rows_kept": dataset.rows_kept,
        "dropped": dataset.dropped,
        "splits": {name: len(dataset.splits[name]) for name in SPLITS},
        "split_fractions": settings.model_dump(),
        "token_lengths": lengths,
        "sha256": files,
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def token_lengths(dataset: Dataset, chat: ChatFormat) -> dict[str, dict[str, int]]:
    """Median, 95th percentile and maximum, in tokens, of the first prompt and of the answers that are there."""
    examples = [e for name in SPLITS for e in dataset.splits[name]]
    texts = {
        "prompt": [len(chat.first_turn(e.question)) for e in examples],
        "original_answer": [len(chat.reply(e.original_answer)) for e in examples if e.original_answer],
        "correct_answer": [len(chat.reply(e.correct_answer)) for e in examples],
    }
    return {
        name: {"p50": sorted(n)[len(n) // 2], "p95": sorted(n)[len(n) * 95 // 100], "max": max(n)}
        for name, n in texts.items()
        if n
    }


def content_sha256(source: str) -> str:
    """SHA-256 of a data file, or of a prepared folder's manifest (which holds those of its files)."""
    path = Path(source)
    path = path / MANIFEST if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_prepared(folder: Path, settings: Data) -> Dataset:
    import pyarrow.parquet as pq

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected, source, fractions = manifest["sha256"], manifest["source"], Data(**manifest["split_fractions"])
    except FileNotFoundError:
        raise UserError(f"{folder}: not a folder that `scorefast prepare` wrote (it has no {MANIFEST})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / MANIFEST}: not a manifest; run `scorefast prepare` again") from None
    if fractions != settings:
        raise UserError(
            f"{folder}: was prepared with {fractions}, the recipe in force says {settings}; prepare it again"
        )
    splits: dict[Split, list[Example]] = {}
    for name in SPLITS:
        path = folder / f"{name}.parquet"
        if not path.is_file() or file_sha256(path) != expected.get(path.name):
            raise UserError(f"{path}: missing or changed since it was prepared; run `scorefast prepare` again")
        splits[name] = [Example(**row) for row in pq.read_table(path).to_pylist()]
    return Dataset(f"{folder} (from {source})", manifest["rows_read"], manifest["dropped"], splits)


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: expected one of {', '.join(readers)} or a folder that `scorefast prepare` wrote")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"{path}: not UTF-8 (byte {error.start} is 0x{byte:02x}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _require_columns(path, reader.fieldnames)
            for row in reader:
                if None in row or None in row.values():
                    cells = len(reader.fieldnames or [])
                    raise UserError(f"{path}: line {reader.line_num}: this row has not the header's {cells} cells")
                yield row
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.reader.line_num}: {error}") from None


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}: line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number}: expected an object")
            _require_columns(path, row)
            yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not Parquet: {error}") from None
    _require_columns(path, table.column_names)
    yield from table.to_pylist()


def _require_columns(path: Path, found: Iterable[str] | None) -> None:
    names = list(found or [])
    if not names:
        raise UserError(f"{path}: the file is empty; expected the columns {', '.join(COLUMNS)}")
    missing = [column for column in ("question", "correct_answer") if column not in names]
    if missing:
        raise UserError(f"{path}: missing column {' and '.join(missing)}; it has {', '.join(map(str, names))}")


def _check_rows(rows: list[dict[str, Any]]) -> tuple[list[Example], Counter[str]]:
    """Rows as examples; blank and repeated ones are dropped and counted by reason, the first of a repeat stays."""
    kept: list[Example] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for row in rows:
        question, original, correct = (_text(row.get(column)) for column in COLUMNS)
        if not question:
            dropped["blank question"] += 1
        elif not correct:
            dropped["blank correct_answer"] += 1
        elif normalized(question) in seen:
            dropped["repeated question"] += 1
        else:
            seen.add(normalized(question))
            kept.append(Example(_digest(question).hex()[:16], question, original or None, correct))
    return kept, dropped


def _text(value: Any) -> str:
    # JSON can name half a surrogate pair, which is no text: it becomes "?"
    return "" if value is None else str(value).encode("utf-8", "replace").decode().strip()

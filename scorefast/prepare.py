"""A source in, a prepared folder out: Parquet files by split, the rows left out, and a manifest. Imports no torch.

Rows pass through in batches: memory holds the hashes of all questions, and the texts of those that may be near
duplicates: the questions that share all their numbers with another, or have none.
"""

from __future__ import annotations

import json
import platform
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from scorefast import __version__
from scorefast.data import (
    MANIFEST,
    SPLITS,
    Dropped,
    Example,
    Reading,
    Split,
    as_columns,
    content_sha256,
    digests,
    file_sha256,
    find_leaks,
    fractions,
    from_columns,
    read_questions,
)
from scorefast.metrics import wilson
from scorefast.presets import COLUMNS, OPTIONAL
from scorefast.recipe import Recipe
from scorefast.reward import chosen_grader, grade_example

if TYPE_CHECKING:
    import pyarrow as pa

    from scorefast.prompts import ChatFormat

DROPPED = "dropped.jsonl"
BATCH = 10_000  # rows of a Parquet row group
MEASURED = 10_000  # rows whose tokens are counted and first attempts graded; of more, those with the smallest ids

FillAttempts = Callable[[list[Example]], list[Example]]  # examples with their missing original_answer filled


@dataclass(frozen=True)
class Prepared:
    manifest: dict[str, Any]
    lengths: dict[str, list[int]]  # tokens of each measured row, for plots
    limits: dict[str, int]  # the most of each that the recipe leaves room for
    preview: list[tuple[str, list[tuple[str, bool]]]]  # (title, pieces of text, whether each is a control token)


def prepare(
    source: str,
    recipe: Recipe,
    out: Path,
    *,
    against: str | None = None,
    chat: ChatFormat | None = None,
    fill: FillAttempts | None = None,
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write the splits, `dropped.jsonl` and last the manifest into `out`, an empty folder: without a manifest it was
    not finished. `chat` is needed to count tokens, `fill` writes first attempts. On an error `out` is emptied again.
    """
    settings = recipe.data
    forbidden = read_questions(against, note) if against else []
    reading = Reading(source, settings, digests(forbidden, against or ""))
    notes: list[str] = []

    def keep_note(line: str) -> None:
        notes.append(line)
        note(line)

    work = out / ".partial"  # hidden: what a kill leaves there is not taken for data
    work.mkdir()
    try:
        with (work / DROPPED).open("w", encoding="utf-8") as dropped:
            keys = _write_splits(reading(keep_note, progress), work, dropped)
            benchmark = (forbidden, against or "")
            counts, near = _drop_leaks(
                source, work, keys, settings.near_duplicates, benchmark, reading.dropped, dropped
            )
        if fill is not None:
            for name in SPLITS:
                _rewrite(work / f"{name}.parquet", fill)
        examples = _measured(work, sum(counts.values()))
        lengths = token_lengths(examples, chat) if chat else {}
        room = limits(chat, recipe) if chat else {}
        manifest = {
            "source": source,
            "source_sha256": content_sha256(source),
            "rows_read": reading.rows_read,
            "rows_kept": sum(counts.values()),
            "dropped": dict(reading.dropped),
            "near_duplicates_kept": near,
            "splits": counts,
            "split_fractions": fractions(settings),
            "read_as": settings.model_dump() | {"notes": notes},
            "against": {"source": against, "questions": len(forbidden), "sha256": content_sha256(against)}
            if against
            else None,
            "rows_measured": len(examples),
            "token_lengths": {name: _percentiles(n) for name, n in lengths.items() if n},
            "too_long": too_long(lengths, room),
            "first_attempts": first_attempts(examples, recipe),
            "graders": dict(Counter(chosen_grader(e, recipe.reward.grader) for e in examples)),
            "sha256": {f"{name}.parquet": file_sha256(work / f"{name}.parquet") for name in SPLITS},
            "versions": {"scorefast": __version__, "python": platform.python_version(), "pyarrow": version("pyarrow")},
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for file in (*(f"{name}.parquet" for name in SPLITS), DROPPED, MANIFEST):
            (work / file).replace(out / file)
        work.rmdir()
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return Prepared(manifest, lengths, room, preview(examples[0], chat) if chat and examples else [])


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("id", *COLUMNS, *OPTIONAL, "extra")])


def _table(examples: list[Example]) -> pa.Table:
    import pyarrow as pa

    return pa.table(as_columns(examples), schema=_schema())


def _write_splits(
    items: Iterable[tuple[Split, Example, int] | Dropped], out: Path, dropped: IO[str]
) -> dict[Split, array[int]]:
    import pyarrow.parquet as pq

    keys: dict[Split, array[int]] = {name: array("q") for name in SPLITS}
    waiting: dict[Split, list[Example]] = {name: [] for name in SPLITS}
    writers = {name: pq.ParquetWriter(out / f"{name}.parquet", _schema()) for name in SPLITS}

    def flush(name: Split) -> None:
        writers[name].write_table(_table(waiting[name]))
        waiting[name].clear()

    try:
        for item in items:
            if isinstance(item, Dropped):
                _write_dropped(dropped, item)
                continue
            split, example, key = item
            keys[split].append(key)
            waiting[split].append(example)
            if len(waiting[split]) == BATCH:
                flush(split)
        for name in SPLITS:
            flush(name)
    finally:
        for writer in writers.values():
            writer.close()
    return keys


def _write_dropped(file: IO[str], item: Dropped) -> None:
    line = {"file": item.file, "line": item.line, "reason": item.reason, "row": item.row}
    file.write(json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "replace").decode() + "\n")


def write_dropped(items: Iterable[Dropped], path: Path) -> None:
    """Every row left out as one JSON line: file, line, reason, row."""
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            _write_dropped(file, item)


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            yield batch.to_pylist()


class _Questions:
    """The questions of a Parquet file, read anew for each pass."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[str]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=BATCH, columns=["question"]):
                yield from batch.column(0).to_pylist()


def _drop_leaks(
    source: str,
    out: Path,
    keys: Mapping[Split, Sequence[int]],
    threshold: float,
    against: tuple[Sequence[str], str],
    reasons: Counter[str],
    dropped: IO[str],
) -> tuple[dict[Split, int], int]:
    """Near duplicates across splits out of the files; (rows left by split, pairs within a split, which stay)."""
    leaks = find_leaks({name: _Questions(out / f"{name}.parquet") for name in SPLITS}, keys, threshold, *against)
    left = {name: len(keys[name]) for name in SPLITS}

    def kept(batch: list[Example]) -> list[Example]:
        verdicts = [leaks.of(example, source) for example in batch]
        for leak in filter(None, verdicts):
            reasons[leak.reason] += 1
            _write_dropped(dropped, leak)
        return [example for example, leak in zip(batch, verdicts, strict=True) if not leak]

    for name in SPLITS if leaks.dropped else ():
        left[name] = _rewrite(out / f"{name}.parquet", kept)
    return left, leaks.kept


def _rewrite(path: Path, change: Callable[[list[Example]], list[Example]]) -> int:
    """The file anew with every batch changed; returns its rows."""
    import pyarrow.parquet as pq

    temporary, rows = path.with_suffix(".partial"), 0
    with pq.ParquetWriter(temporary, _schema()) as writer:
        for batch in _batches(path):
            changed = change([from_columns(row) for row in batch])
            writer.write_table(_table(changed))
            rows += len(changed)
    temporary.replace(path)
    return rows


# --- what is measured --------------------------------------------------------------------------------------------


def _measured(out: Path, rows: int) -> list[Example]:
    """All examples, or of more than MEASURED those with the smallest ids: hashes, so a sample that nobody chose."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    paths = [out / f"{name}.parquet" for name in SPLITS]
    chosen = None
    if rows > MEASURED:
        ids = pa.concat_tables([pq.read_table(path, columns=["id"]) for path in paths])
        smallest = pc.select_k_unstable(ids, MEASURED, sort_keys=[("id", "ascending")])
        chosen = [("id", "<=", pc.max(ids["id"].take(smallest)).as_py())]
    return [from_columns(row) for path in paths for row in pq.read_table(path, filters=chosen).to_pylist()]


def token_lengths(examples: Iterable[Example], chat: ChatFormat) -> dict[str, list[int]]:
    """Tokens of the first prompt and of the answers that are there."""
    lengths: dict[str, list[int]] = {"prompt": [], "original_answer": [], "correct_answer": []}
    for e in examples:
        lengths["prompt"].append(len(chat.first_turn(e.question)))
        lengths["correct_answer"].append(len(chat.reply(e.correct_answer)))
        if e.original_answer:
            lengths["original_answer"].append(len(chat.reply(e.original_answer)))
    return lengths


def _percentiles(lengths: list[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {f"p{p}": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in (50, 95, 99)} | {
        "max": ordered[-1]
    }


def limits(chat: ChatFormat, recipe: Recipe) -> dict[str, int]:
    """The most tokens of a prompt for two whole turns to fit, and of an answer to be one the model may write."""
    reply = recipe.rollout.max_new_tokens
    room = recipe.model.max_seq_length - len(chat.next_turn([])) - 2 * reply
    return {"prompt": room, "original_answer": reply, "correct_answer": reply}


def too_long(lengths: Mapping[str, list[int]], limits: Mapping[str, int]) -> dict[str, int]:
    """Measured rows beyond each limit."""
    settings = {"prompt": "two turns > model.max_seq_length"}
    return {
        settings.get(name, f"{name} > rollout.max_new_tokens"): sum(n > limits[name] for n in counted)
        for name, counted in lengths.items()
    }


def first_attempts(examples: Iterable[Example], recipe: Recipe) -> dict[str, Any]:
    """How many original answers there are, by whom, and how many of them are right already (Wilson 95 %)."""
    given = [e for e in examples if e.original_answer]
    right = sum(grade_example(e.original_answer or "", e, recipe.reward.grader).correct for e in given)
    return {
        "given": len(given),
        "right": right,
        "right_ci95": wilson(right, len(given)) if given else None,
        "by": dict(Counter(e.original_answer_by or "source" for e in given)),
    }


def preview(example: Example, chat: ChatFormat) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Both prompts of a row as the model gets them, in pieces; control tokens are marked True."""
    reply = chat.reply(example.original_answer or "...")
    first = chat.first_turn(example.question)
    return [
        (f"turn 1: {len(first)} tokens", chat.render(first)),
        (f"turn 2 adds {len(chat.next_turn(reply))} tokens", chat.render(reply + chat.next_turn(reply))),
    ]

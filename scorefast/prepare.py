"""Prepare a source: write Parquet files by split, the dropped rows and a manifest. Imports no torch.

Rows are processed in batches. Memory holds the hashes of all questions and the texts of possible near duplicates, which
are the questions that share all their numbers with another question.
"""

from __future__ import annotations

import io
import itertools
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scorefast import __version__
from scorefast.data.example import COLUMNS, OPTIONAL, SPLITS, Dataset, Dropped, Example, Split
from scorefast.data.leaks import Index, find_leaks, note_heavy_losses
from scorefast.data.load import content_sha256, digests, read_questions
from scorefast.data.prepared import MANIFEST, Prepared, Preview, from_columns
from scorefast.data.reading import Kept, Reading, concatenated
from scorefast.errors import UserError
from scorefast.files.atomic import file_sha256, filled_at_the_end, write_aside, write_file
from scorefast.files.bounded import JsonObject
from scorefast.grading.graded_example import check_references, chosen_grader, grade_example
from scorefast.runs.folder import claimed
from scorefast.runs.layout import DROPPED
from scorefast.schema import Recipe
from scorefast.stats import wilson
from scorefast.ui.data_report import print_prepared, write_data_report
from scorefast.ui.progress import Pulse, byte_progress

if TYPE_CHECKING:
    import pyarrow as pa

    from scorefast.model.chat_format import ChatFormat
    from scorefast.model.policy import Policy
    from scorefast.runs.checkpoint import Checkpoint
    from scorefast.ui.console import InertConsole

BATCH = 10_000  # rows of a Parquet row group
MAX_BUFFERED = 2**27  # approximate characters buffered before they are written
MAX_MEASURED = 10_000  # rows whose tokens are counted and first attempts graded: those with the smallest ids
EXAMPLES_SHOWN = 3  # original answers whose grading `prepare` shows

FillAttempts = Callable[[list[Example]], list[Example]]  # fills missing original answers


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
    """Write the splits, `dropped.jsonl` and, last, the manifest into the empty folder `out`.

    A folder without a manifest is unfinished; an error leaves no files. against: a benchmark whose questions are left
    out. chat: counts tokens if given. fill: writes missing first attempts if given.
    """
    settings = recipe.data
    forbidden = read_questions(against, note) if against else []
    reading = Reading(source, settings, digests(forbidden, against or ""))
    notes: list[str] = []

    def keep_note(line: str) -> None:
        notes.append(line)
        note(line)

    with filled_at_the_end(out, last=MANIFEST) as work:
        with (work / DROPPED).open("w", encoding="utf-8") as dropped:
            index = _write_splits(reading, reading(keep_note, progress), work, dropped)
            counts, near = _drop_leaks(reading, work, index, (forbidden, against or ""), dropped, keep_note)
        if not any(counts.values()):
            reasons = ", ".join(f"{reason}: {n}" for reason, n in reading.dropped.items())
            raise UserError(f"{source}: no row is left: {reasons}")
        if fill is not None:
            for name in SPLITS:
                _rewrite(work / f"{name}.parquet", fill)
        examples = _measured(work, sum(counts.values()))
        for line in check_references(examples, recipe.reward.grader):
            keep_note(line)
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
            "read_as": settings.model_dump() | {"notes": notes},
            "against": {"source": against, "questions": len(forbidden), "sha256": content_sha256(against)}
            if against
            else None,
            **_measurements(examples, recipe, lengths, room),
            "sha256": {f"{name}.parquet": file_sha256(work / f"{name}.parquet") for name in SPLITS},
            "versions": {"scorefast": __version__, "python": platform.python_version(), "pyarrow": version("pyarrow")},
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Prepared(manifest, lengths, room, preview(examples[0], chat) if chat and examples else [])


def fill_with(writer: Checkpoint | None, recipe: Recipe, console: InertConsole) -> FillAttempts:
    """A function that fills missing original answers with replies sampled from a checkpoint, and records the author.

    writer: None for the base model. The function notes its progress once a minute.
    """
    import torch

    from scorefast.model.load import load_policy
    from scorefast.rl.rollout import first_attempts, generator

    author, rollout = writer.name if writer else recipe.model.name, recipe.rollout
    pulse, done = Pulse(), 0

    def count(replies: int) -> None:
        nonlocal done
        done += replies
        if pulse.due():
            pulse.reset()
            console.note(f"{done} first attempts written")

    @cache
    def policy() -> Policy:
        """Load on the first call, after the data is read and checked."""
        loaded = load_policy(recipe, writer)
        torch.manual_seed(recipe.seed)
        return loaded

    def fill(examples: list[Example]) -> list[Example]:
        missing = [e for e in examples if e.original_answer is None]
        if not missing:
            return examples
        chat, room = policy().chat, recipe.model.max_seq_length - rollout.max_new_tokens
        missing = [e for e in missing if len(chat.first_turn(e.question)) <= room]  # longer questions stay without one
        generate = generator(policy(), rollout, rollout.temperature, on_replies=count)
        written = dict(zip([e.id for e in missing], first_attempts(generate, chat, missing), strict=True))
        return [
            e._replace(original_answer=written[e.id].text or None, original_answer_by=author) if e.id in written else e
            for e in examples
        ]

    return fill


def run(
    source: str,
    recipe: Recipe,
    out: Path | None,
    console: InertConsole,
    *,
    against: str | None,
    fill: FillAttempts | None,
    page: bool,
) -> Path:
    """The command: prepare into a new folder, print a summary and, with `page`, write report.html."""
    from scorefast.model.tokenizer import chat_format

    chat = None
    try:
        chat = chat_format(recipe)
    except UserError as error:
        if fill is not None:
            raise
        console.note(f"token lengths are not measured: {error}")
    note = console.note
    try:
        with claimed(out, "data") as folder, byte_progress(console) as bar:
            done = prepare(source, recipe, folder, against=against, chat=chat, fill=fill, note=note, progress=bar)
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        raise
    print_prepared(console, done)
    report = folder / "report.html"
    if page and write_aside(report, lambda: write_data_report(done, report), note):
        note(f"report: {report}")
    return folder


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("id", *COLUMNS, *OPTIONAL, "extra")])


def _table(columns: Mapping[str, Sequence[object]]) -> pa.Table:
    """A table of strings, with `extra` as JSON."""
    import pyarrow as pa

    extra = [json.dumps(e, ensure_ascii=False, default=str) if e else None for e in columns["extra"]]
    return pa.table({**columns, "extra": extra}, schema=_schema())


def _write_splits(reading: Reading, parts: Iterable[Kept | Dropped], out: Path, dropped: IO[str]) -> Index:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = Index()
    buffered: list[Kept] = []
    waiting: dict[Split, list[pa.Table]] = {name: [] for name in SPLITS}
    writers = {name: pq.ParquetWriter(out / f"{name}.parquet", _schema()) for name in SPLITS}

    def flush_splits(least: int) -> None:
        """Move the buffered rows to their splits, and write each split that has at least `least` rows."""
        whole = concatenated(buffered)
        buffered.clear()
        index.add(whole)
        table = _table(whole.columns)
        for i, name in enumerate(SPLITS):
            if (whole.splits == i).any():
                waiting[name].append(table.filter(pa.array(whole.splits == i)))
            ready, size = sum(map(len, waiting[name])), sum(t.nbytes for t in waiting[name])
            if ready and (ready >= least or size > MAX_BUFFERED):
                writers[name].write_table(pa.concat_tables(waiting[name]))
                waiting[name].clear()

    try:
        rows = written = 0
        for part in parts:
            if isinstance(part, Dropped):
                _write_dropped(dropped, part)
                continue
            buffered.append(part)
            rows += len(part.splits)
            if rows >= BATCH or reading.size - written > MAX_BUFFERED:
                flush_splits(least=BATCH)
                rows, written = 0, reading.size
        if buffered or any(waiting.values()):
            flush_splits(least=1)
    finally:
        for writer in writers.values():
            writer.close()
    return index


def _write_dropped(file: IO[str], item: Dropped) -> None:
    line = {"file": item.file, "line": item.line, "reason": item.reason, "row": item.row}
    file.write(json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "replace").decode() + "\n")


def write_dropped_aside(dataset: Dataset, folder: Path, note: Callable[[str], None]) -> None:
    """Write `dropped.jsonl` for a command that reads raw data: one JSON line (file, line, reason, row) per dropped row.

    Nothing depends on the file, so a failure to write it is only noted.
    """
    if dataset.dropped_rows:
        file = io.StringIO()
        for item in dataset.dropped_rows:
            _write_dropped(file, item)
        write_aside(folder / DROPPED, lambda: write_file(folder / DROPPED, file.getvalue()), note)


def _batches(path: Path) -> Iterator[list[dict[str, str | None]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            yield batch.to_pylist()


class _Questions:
    """The questions of a Parquet file, read again on each iteration."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[str]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=BATCH, columns=["question"]):
                yield from batch.column(0).to_pylist()


def _drop_leaks(
    reading: Reading,
    out: Path,
    index: Index,
    against: tuple[Sequence[str], str],
    dropped: IO[str],
    note: Callable[[str], None],
) -> tuple[dict[Split, int], int]:
    """Remove near duplicates across splits from the files. Returns (rows left by split, pairs kept within splits)."""
    questions = {name: _Questions(out / f"{name}.parquet") for name in SPLITS}
    leaks, kept = find_leaks(questions, index, reading.settings.near_duplicates, *against)
    note_heavy_losses(leaks, questions, note)

    def drop(places: list[int], found: dict[int, tuple[str, str]]) -> Callable[[list[Example]], list[Example]]:
        positions = itertools.count()

        def without(batch: list[Example]) -> list[Example]:
            rows = {i: example for example, i in zip(batch, positions, strict=False)}
            for i in sorted(rows.keys() & found.keys()):
                _write_dropped(dropped, reading.drop_near_duplicate(places[i], rows.pop(i), found[i]))
            return list(rows.values())

        return without

    for name, found in leaks.items():
        _rewrite(out / f"{name}.parquet", drop(index.places(name), found))
    return {name: len(index.keys(name)) - len(leaks.get(name, ())) for name in SPLITS}, kept


def _rewrite(path: Path, change: Callable[[list[Example]], list[Example]]) -> None:
    """Rewrite a Parquet file with `change` applied to every batch."""
    import pyarrow.parquet as pq

    temporary = path.with_suffix(".partial")
    with pq.ParquetWriter(temporary, _schema()) as writer:
        for batch in _batches(path):
            changed = change([from_columns(row) for row in batch])
            writer.write_table(_table({name: [getattr(e, name) for e in changed] for name in Example._fields}))
    temporary.replace(path)


def _measured(out: Path, rows: int) -> list[Example]:
    """The MAX_MEASURED examples with the smallest ids. Ids are hashes, so they are a random sample."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    paths = [out / f"{name}.parquet" for name in SPLITS]
    chosen = None
    if rows > MAX_MEASURED:
        ids = pa.concat_tables([pq.read_table(path, columns=["id"]) for path in paths])
        smallest = pc.select_k_unstable(ids, MAX_MEASURED, sort_keys=[("id", "ascending")])
        chosen = [("id", "<=", pc.max(ids["id"].take(smallest)).as_py())]
    return [from_columns(row) for path in paths for row in pq.read_table(path, filters=chosen).to_pylist()]


def _measurements(
    examples: Sequence[Example], recipe: Recipe, lengths: Mapping[str, list[int]], room: Mapping[str, int]
) -> dict[str, object]:
    """The part of the manifest that is measured on `examples`, all rows or a sample of them."""
    return {
        "rows_measured": len(examples),
        "token_lengths": {name: _percentiles(n) for name, n in lengths.items() if n},
        "too_long": too_long(lengths, room),
        "first_attempts": first_attempts(examples, recipe),
        "graders": dict(Counter(chosen_grader(e, recipe.reward.grader) for e in examples)),
    }


def token_lengths(examples: Sequence[Example], chat: ChatFormat) -> dict[str, list[int]]:
    """Token counts of the first prompts and of the given answers."""

    def lengths(texts: list[str], around: list[int]) -> list[int]:
        return [len(around) + len(ids) for ids in chat.encode_all(texts)]

    return {
        "prompt": lengths([e.question for e in examples], chat.first_turn("")),
        "original_answer": lengths([e.original_answer for e in examples if e.original_answer], chat.reply("")),
        "correct_answer": lengths([e.correct_answer for e in examples], chat.reply("")),
    }


def _percentiles(lengths: list[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {f"p{p}": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in (50, 95, 99)} | {
        "max": ordered[-1]
    }


def limits(chat: ChatFormat, recipe: Recipe) -> dict[str, int]:
    """The most tokens of a prompt that leaves room for two full turns, and of an answer the model may write."""
    reply = recipe.rollout.max_new_tokens
    room = recipe.model.max_seq_length - len(chat.next_turn([])) - 2 * reply
    return {"prompt": room, "original_answer": reply, "correct_answer": reply}


def too_long(lengths: Mapping[str, list[int]], limits: Mapping[str, int]) -> dict[str, int]:
    """The number of measured rows above each limit."""
    settings = {"prompt": "two turns > model.max_seq_length"}
    return {
        settings.get(name, f"{name} > rollout.max_new_tokens"): sum(n > limits[name] for n in counted)
        for name, counted in lengths.items()
    }


def first_attempts(examples: Iterable[Example], recipe: Recipe) -> JsonObject:
    """The number of original answers, by author, and how many are correct, with a 95 % Wilson interval.

    `examples` has the grades of the first EXAMPLES_SHOWN with their reasons.
    """
    given = sorted((e for e in examples if e.original_answer), key=lambda e: e.id)
    grades = [grade_example(e.original_answer or "", e, recipe.reward.grader) for e in given]
    right = sum(grade.correct for grade in grades)
    return {
        "examples": [
            {
                "original_answer": e.original_answer,
                "correct_answer": e.correct_answer,
                "correct": grade.correct,
                "unsure": grade.unsure,
                "reason": grade.reason,
            }
            for e, grade in zip(given[:EXAMPLES_SHOWN], grades, strict=False)
        ],
        "given": len(given),
        "right": right,
        "right_ci95": wilson(right, len(given)) if given else None,
        "by": dict(Counter(e.original_answer_by or "source" for e in given)),
    }


def preview(example: Example, chat: ChatFormat) -> Preview:
    """Both prompts of a row as the model receives them."""
    reply = chat.reply(example.original_answer or "...")
    first = chat.first_turn(example.question)
    return [
        (f"turn 1: {len(first)} tokens", chat.render(first)),
        (f"turn 2 adds {len(chat.next_turn(reply))} tokens", chat.render(reply + chat.next_turn(reply))),
    ]

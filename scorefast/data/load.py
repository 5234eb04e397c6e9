"""Load a source into checked examples by split. Imports no torch.

A row is `question, original_answer, correct_answer`. A missing or blank original_answer is None: on-policy methods
sample their own first attempts. The text of a question alone determines its split. Every unused row is kept with its
reason and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from scorefast.data.columns import QUESTION_COLUMNS, question_of
from scorefast.data.example import SPLITS, Dataset, Dropped, Example, Split
from scorefast.data.leaks import Index, find_leaks, note_heavy_losses
from scorefast.data.prepared import MANIFEST, is_prepared, load_prepared
from scorefast.data.reading import Reading
from scorefast.data.rows import Row
from scorefast.data.sources import read_rows, source_files
from scorefast.data.splits import question_digest
from scorefast.errors import UserError
from scorefast.files.atomic import file_sha256
from scorefast.files.text import listed, normalized
from scorefast.schema import Data


def load_dataset(source: str, settings: Data, note: Callable[[str], None] = lambda line: None) -> Dataset:
    """Load any source of `data.sources`, or a folder that `scorefast prepare` wrote with the same `split_settings`.

    Raises UserError naming the file and, where possible, the row or the columns.
    """
    if is_prepared(source):
        return load_prepared(Path(source), settings, note)
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
            splits[SPLITS[split]].append(Example._make(values))
    questions = {name: [e.question for e in splits[name]] for name in SPLITS}
    leaks, _ = find_leaks(questions, index, settings.near_duplicates)
    note_heavy_losses(leaks, questions, note)
    for name, found in leaks.items():
        places = index.places(name)
        dropped += [reading.drop_near_duplicate(places[i], splits[name][i], leak) for i, leak in found.items()]
        splits[name] = [e for i, e in enumerate(splits[name]) if i not in found]
    return Dataset(source, reading.rows_read, dict(reading.dropped), splits, tuple(dropped))


def read_questions(source: str, note: Callable[[str], None] = lambda line: None) -> list[str]:
    """The questions of a benchmark to check against: any source with one of QUESTION_COLUMNS.

    Notes the number of unreadable rows. Raises UserError if no question can be read.
    """
    if is_prepared(source):
        return [e.question for examples in load_prepared(Path(source), None).splits.values() for e in examples]
    found, unread = [], 0
    for row in read_rows(source, note=note):
        values = row.values if isinstance(row, Row) else {"question": ""}
        text = question_of(values)
        if text is None:
            raise UserError(f"{source}: has no column {', '.join(QUESTION_COLUMNS)}; it has {listed(values)}")
        unread += not text
        found += [text] if text else []
    if unread:
        note(f"{source}: {unread} rows have no readable question and are not checked against")
    if not found:
        raise UserError(f"{source}: no question to check against")
    return found


def digests(questions: Iterable[str], name: str) -> dict[bytes, str]:
    return {question_digest(normalized(question)): name for question in questions}


def content_sha256(source: str) -> str:
    """SHA-256 of a source's files. A prepared folder is hashed by its manifest, which has the hashes of its files."""
    if is_prepared(source):
        return file_sha256(Path(source) / MANIFEST)
    if source.startswith("hub:"):  # only the name; `prepare` hashes the rows it wrote
        return hashlib.sha256(source.encode()).hexdigest()
    hashes = [file_sha256(path) for path in source_files(source)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

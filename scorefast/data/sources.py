"""Read rows from files of any common type, saved data sets and the Hugging Face hub. Imports no torch.

Nothing is dropped silently. An unreadable row becomes a BadRow, an unreadable source raises UserError naming the file,
and assumptions go to `note`. Memory is bounded for files of any size and content, by limits on the length of a line,
the number of columns, the nesting depth and the expansion of compressed files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from scorefast.data.arrow_rows import dataset_rows, parquet_rows
from scorefast.data.compressed import ACCEPTED, decompressed, kind_of
from scorefast.data.csv_rows import csv_rows
from scorefast.data.encodings import find_encoding
from scorefast.data.json_rows import json_rows, jsonl_rows
from scorefast.data.rows import BadRow, Row, Rows
from scorefast.errors import UserError
from scorefast.files.bounded import read_json
from scorefast.files.text import one_line

PROSE = re.compile(r"(readme|licen[sc]e|notice|citation|changelog)\b.*|.*\.(md|txt|rst)", re.IGNORECASE)


def read_rows(
    source: str,
    *,
    encoding: str = "auto",
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Row | BadRow]:
    """`read_chunks`, row by row."""
    for part in read_chunks(source, encoding=encoding, note=note, progress=progress):
        if isinstance(part, BadRow):
            yield part
        else:
            yield from (Row(part.file, line, part.values(i)) for i, line in enumerate(part.lines))


def read_chunks(
    source: str,
    *,
    encoding: str = "auto",
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Rows | BadRow]:
    """Yields a few thousand rows at a time, in order.

    source: a file, a folder of files, a folder of `save_to_disk`, or `hub:owner/name[/config][:split]`. Only `hub:`
    uses the network. progress: called with the bytes read and the total bytes, as stored on disk.
    """
    files, skipped = ([], []) if source.startswith("hub:") else _find(Path(source))
    if not files or files[0].suffix == ".arrow":
        yield from dataset_rows(source, progress)
        return
    for path in skipped:
        note(f"{path}: skipped, {'a folder' if path.is_dir() else f'not one of {ACCEPTED}'}")
    sizes = [path.stat().st_size for path in files]
    for i, path in enumerate(files):
        try:
            with path.open("rb") as raw:
                for part in _file_rows(path, raw, encoding, note):
                    yield part
                    if isinstance(part, Rows):
                        progress(sum(sizes[:i]) + (sizes[i] if raw.closed else raw.tell()), sum(sizes))
        except MemoryError:
            raise UserError(f"{path}: needs more memory than is free") from None
        except (OSError, UnicodeError) as error:
            raise UserError(f"{path}: {getattr(error, 'strerror', None) or one_line(error)}") from None
        progress(sum(sizes[: i + 1]), sum(sizes))


def source_files(source: str) -> list[Path]:
    """The files of a local source in reading order; none for a hub id. Raises UserError."""
    return [] if source.startswith("hub:") else _find(Path(source))[0]


def _find(path: Path) -> tuple[list[Path], list[Path]]:
    """The files to read, and the skipped files to note. Raises UserError if there is no file to read."""
    try:
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            named = [path / file["filename"] for file in read_json(path / "state.json")["_data_files"]]
            if not named or not all(file.parent == path and file.is_file() for file in named):
                raise UserError(f"{path / 'state.json'}: names a file that is not in its folder")
            return named, []
        if (path / "dataset_dict.json").is_file():
            splits = read_json(path / "dataset_dict.json")["splits"]
            raise UserError(f"{path}: has the splits {', '.join(splits)}: give one of them, e.g. {path / splits[0]}")
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        seen = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else [path]
    except (OSError, ValueError, LookupError, TypeError) as error:  # the last two: damaged files of save_to_disk
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    files = [p for p in seen if kind_of(p) and p.is_file()]
    if not files:
        what = "contains no file to read; " if path.is_dir() else "" if path.is_file() else "not a file; "
        raise UserError(f"{path}: {what}expected one of {ACCEPTED}")
    return files, [p for p in seen if p not in files and not PROSE.fullmatch(p.name)]


def _file_rows(path: Path, raw: BinaryIO, encoding: str, note: Callable[[str], None]) -> Iterator[Rows | BadRow]:
    if kind_of(path) == ".parquet":
        return parquet_rows(path, raw)
    codec, errors = find_encoding(path, encoding, note)
    stream = decompressed(path, raw)
    newline = "\n" if b"\n" in stream.peek() else ""  # "" also splits at a lone "\r", and is slower
    text = io.TextIOWrapper(stream, encoding=codec, errors=errors, newline=newline)
    if kind_of(path) in {".csv", ".tsv"}:
        return csv_rows(path, text, note)
    return json_rows(path, text) if kind_of(path) == ".json" else jsonl_rows(path, text)

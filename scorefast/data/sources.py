"""Files of any common kind in, rows out: nothing vanishes silently. Imports no torch.

What cannot be read as a row comes out as a BadRow, what makes a source unreadable is a UserError naming the file, what
had to be assumed goes to `note`. Memory is bounded whatever the size and whatever is written there: by the longest
line, the most columns and levels, and what a compressed file may become.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from scorefast.data.arrow_rows import dataset_rows, parquet_rows
from scorefast.data.compressed import ACCEPTED, decompressed, kind_of
from scorefast.data.csv_rows import csv_rows
from scorefast.data.encodings import find_encoding
from scorefast.data.json_rows import json_rows, jsonl_rows
from scorefast.data.rows import BadRow, Row, Rows
from scorefast.errors import UserError
from scorefast.files.bounded import read_json
from scorefast.files.text import one_line

if TYPE_CHECKING:
    pass

PROSE = re.compile(r"(readme|licen[sc]e|notice|citation|changelog)\b.*|.*\.(md|txt|rst)", re.IGNORECASE)


def read_rows(source: str, **options: Any) -> Iterator[Row | BadRow]:
    """`read_chunks`, row by row."""
    for part in read_chunks(source, **options):
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
    """Some thousand rows at a time, in order: a file, a folder of files, a folder that `save_to_disk` wrote or
    `hub:owner/name[/config][:split]`.

    `progress` is given bytes read and bytes in all, as they lie on disk. Only `hub:` touches the network.
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
            raise UserError(f"{path}: takes more memory than there is") from None
        except (OSError, UnicodeError) as error:
            raise UserError(f"{path}: {getattr(error, 'strerror', None) or one_line(error)}") from None
        progress(sum(sizes[: i + 1]), sum(sizes))


def source_files(source: str) -> list[Path]:
    """The files a local source consists of, in reading order; none for a hub id. Raises UserError."""
    return [] if source.startswith("hub:") else _find(Path(source))[0]


def _find(path: Path) -> tuple[list[Path], list[Path]]:
    """The files to read, and those skipped that are worth a word. Raises UserError where there is none to read."""
    try:
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            named = [path / file["filename"] for file in read_json(path / "state.json")["_data_files"]]
            if not named or not all(file.parent == path and file.is_file() for file in named):
                raise UserError(f"{path / 'state.json'}: names a file that is not in its folder")
            return named, []
        if (path / "dataset_dict.json").is_file():
            splits = read_json(path / "dataset_dict.json")["splits"]
            raise UserError(f"{path}: holds the splits {', '.join(splits)}: give one of them, e.g. {path / splits[0]}")
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        seen = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else [path]
    except (OSError, ValueError, LookupError, TypeError) as error:  # the latter where save_to_disk's files are damaged
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    files = [p for p in seen if kind_of(p) and p.is_file()]
    if not files:
        what = "holds no file to read; " if path.is_dir() else "" if path.is_file() else "not a file; "
        raise UserError(f"{path}: {what}expected one of {ACCEPTED}")
    return files, [p for p in seen if p not in files and not PROSE.fullmatch(p.name)]


def _file_rows(path: Path, raw: BinaryIO, encoding: str, note: Callable[[str], None]) -> Iterator[Rows | BadRow]:
    if kind_of(path) == ".parquet":
        return parquet_rows(path, raw)
    codec, errors = find_encoding(path, encoding, note)
    stream = decompressed(path, raw)
    newline = "\n" if b"\n" in stream.peek() else ""  # "" also knows "\r" alone, and is slower
    text = io.TextIOWrapper(stream, encoding=codec, errors=errors, newline=newline)
    if kind_of(path) in {".csv", ".tsv"}:
        return csv_rows(path, text, note)
    return json_rows(path, text) if kind_of(path) == ".json" else jsonl_rows(path, text)

"""Files of any common kind in, rows out: nothing vanishes silently. Imports no torch.

What cannot be read as a row comes out as a BadRow, what makes a source unreadable is a UserError naming the file, what
had to be assumed goes to `note`. Memory is bounded whatever the size and whatever is written there: by the longest
line, the most columns and levels, and what a compressed file may become.
"""

from __future__ import annotations

import codecs
import collections
import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO, cast

from scorefast.recipe import UserError
from scorefast.untrusted import bounded_memory, listed, one_line, read_json

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ACCEPTED = f"{', '.join(KINDS)} (all but .parquet also with {' or '.join(COMPRESSIONS)})"
PROSE = re.compile(r"(readme|licen[sc]e|notice|citation|changelog)\b.*|.*\.(md|txt|rst)", re.IGNORECASE)
ROWS, CHARACTERS = 4096, 2**24  # the most rows of a file that are looked at together, and (one row more) text in them
LONGEST_LINE = LARGEST_CELL = 2**25  # characters; bounds what a quote that is never closed can swallow
LARGEST_WHOLE, MOST_VALUES = 2**30, 5 * 10**7  # bytes of a .json file, and values in it, about: it is read whole
MOST_COLUMNS, DEEPEST = 10_000, 100  # of a row; levels of lists and objects in it
UNSUSPECTED = 2**28  # bytes that any compressed file may become; then as many times its own as EXPANSION says
EXPANSION = {"gzip": 200, "zstd": 200, "Parquet": 1000}  # of texts: 5 to 30; of the same long prompt in each row: 300
BATCH_MEMORY = 2**31  # bytes that a batch of 1,024 rows may take while a library decodes it (on Linux)
NO_TEXT = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"}  # codecs for other purposes
RAW_KEPT = 2000
CHUNK, SAMPLE = 2**20, 2**18  # bytes read at a time, and looked at to tell a legacy encoding
BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Row(NamedTuple):
    file: str
    line: int  # 1-based, on which the row begins; in .json, Parquet and datasets the 1-based number of the row
    values: dict[str, Any]


class Rows(NamedTuple):
    """Rows of one file: `columns` as long as `lines`, or `records` where rows may have keys of their own."""

    file: str
    lines: Sequence[int]  # as Row.line
    columns: Mapping[str, Sequence[Any]] = {}
    records: Sequence[dict[str, Any]] = ()
    size: int = 0  # characters in them, about

    def names(self) -> dict[str, None]:
        return dict.fromkeys([*self.columns, *(name for record in self.records for name in record)])

    def column(self, name: str) -> Sequence[Any]:
        """None where a row has nothing of that name."""
        if self.records:
            return [record.get(name) for record in self.records]
        return self.columns.get(name) or [None] * len(self.lines)

    def values(self, i: int) -> dict[str, Any]:
        return self.records[i] if self.records else {name: column[i] for name, column in self.columns.items()}


class BadRow(NamedTuple):
    file: str
    line: int
    reason: str
    raw: str  # the first RAW_KEPT characters of it


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
        yield from _dataset_rows(source, progress)
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


def _kind(path: Path) -> str:
    """The suffix that says how to read a file, its compression's left out; "" if it is none of KINDS."""
    compressed = path.suffix.lower() in COMPRESSIONS
    kind = Path(path.stem if compressed else path.name).suffix.lower()
    return kind if kind in KINDS and not (compressed and kind == ".parquet") else ""


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
    files = [p for p in seen if _kind(p) and p.is_file()]
    if not files:
        what = "holds no file to read; " if path.is_dir() else "" if path.is_file() else "not a file; "
        raise UserError(f"{path}: {what}expected one of {ACCEPTED}")
    return files, [p for p in seen if p not in files and not PROSE.fullmatch(p.name)]


def _file_rows(path: Path, raw: BinaryIO, encoding: str, note: Callable[[str], None]) -> Iterator[Rows | BadRow]:
    if _kind(path) == ".parquet":
        return _parquet_rows(path, raw)
    codec, errors = _find_encoding(path, encoding, note)
    stream = _decompressed(path, raw)
    newline = "\n" if b"\n" in stream.peek() else ""  # "" also knows "\r" alone, and is slower
    text = io.TextIOWrapper(stream, encoding=codec, errors=errors, newline=newline)
    if _kind(path) in {".csv", ".tsv"}:
        return _csv_rows(path, text, note)
    return _json_rows(path, text) if _kind(path) == ".json" else _jsonl_rows(path, text)


def _decompressed(path: Path, raw: BinaryIO) -> io.BufferedReader:
    if path.suffix.lower() not in COMPRESSIONS:
        return raw  # type: ignore[return-value]
    return io.BufferedReader(_Decompressed(path, raw), SAMPLE)


class _Decompressed(io.RawIOBase):
    """What a compressed file holds, as long as it is not many times what texts compress to."""

    def __init__(self, path: Path, raw: BinaryIO):
        import pyarrow as pa

        self._path, self._raw, self._kind = path, raw, COMPRESSIONS[path.suffix.lower()]
        self._inside, self._given = pa.CompressedInputStream(raw, self._kind), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._inside.readinto(buffer))
        self._given += count
        _require_plausible(self._path, self._kind, self._raw.tell(), self._given)
        return count


def _require_plausible(source: Path | str, kind: str, stored: int, became: int) -> None:
    if became > max(UNSUSPECTED, EXPANSION[kind] * stored):
        unpack = "" if kind == "Parquet" else "; unpack it first if that is meant"
        raise UserError(f"{source}: becomes more than {EXPANSION[kind]} times what it takes as {kind}{unpack}")


def bounded_lines(text: TextIO, name: object, longest: int = LONGEST_LINE) -> Iterator[str]:
    """Lines with their ends. Raises UserError, with the line's number, where one is longer."""
    for number, line in enumerate(iter(partial(text.readline, longest + 1), ""), 1):
        if len(line) > longest:
            raise UserError(f"{name}: line {number}: longer than the {longest:,} characters that a line may have")
        yield line


class _RowLines:
    """Lines for csv.reader. Those of the row that it reads are kept until the next one begins."""

    def __init__(self, lines: Iterator[str], path: Path, number: int):
        self.kept: list[str] = []
        self._lines, self._path, self._number = lines, path, number
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._lines, self._number):
            self.kept.append(line)
            self._length += len(line)
            if self._length > 2 * LARGEST_CELL:
                first = number - len(self.kept) + 1
                raise UserError(f"{self._path}: line {first}: a row of more than {2 * LARGEST_CELL:,} characters")
            yield line

    def begin(self) -> None:
        self.kept.clear()
        self._length = 0


def _delimiter(path: Path, first: str, note: Callable[[str], None]) -> str:
    if _kind(path) == ".tsv":
        return "\t"
    head = next(csv.reader([first]), [])
    other = next((d for d in "\t;" if d in head[0]), "") if len(head) == 1 else ""
    if other:
        note(f"{path}: its header has no comma: cells end at {other!r} (assumed)")
    return other or ","


def _csv_rows(path: Path, text: TextIO, note: Callable[[str], None]) -> Iterator[Rows | BadRow]:
    csv.field_size_limit(LARGEST_CELL)
    every = bounded_lines(text, path, 2 * LARGEST_CELL)  # csv itself tells of a cell that is larger
    blank, first = next(((n, line) for n, line in enumerate(every) if line.strip()), (0, ""))
    source = _RowLines(itertools.chain([first], every), path, blank + 1)
    try:
        reader = csv.reader(source, delimiter=_delimiter(path, first, note), strict=True)
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{path}: line {blank + 1}: {error}") from None
    if problem := _header_problem(names) or _text_problem("".join(names), text):
        raise UserError(f"{path}: {problem}")
    file, width, suspect = str(path), len(names), text.errors != "strict"
    rows: list[list[str]] = []
    lines: list[int] = []
    size = 0  # characters in `rows`, and one for each cell

    def chunk() -> Iterator[Rows]:
        nonlocal size
        if rows:
            yield Rows(file, lines[:], dict(zip(names, zip(*rows, strict=True), strict=True)), size=size)
            rows.clear()
            lines.clear()
            size = 0

    def bad(problem: str) -> BadRow:
        return BadRow(file, blank + line + 1, problem, "".join(source.kept)[:RAW_KEPT])

    while True:
        line = reader.line_num  # before the row
        source.begin()
        try:
            for cells in reader:
                problem = _text_problem("".join(cells), text) if suspect else None
                if len(cells) == width and not problem:
                    rows.append(cells)
                    lines.append(blank + line + 1)
                    size += width + sum(map(len, cells))
                elif cells:
                    yield from chunk()
                    yield bad(problem or f"{len(cells)} cells, the header has {width}")
                line = reader.line_num
                source.begin()
                if len(rows) == ROWS or size > CHARACTERS:
                    yield from chunk()
            yield from chunk()
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                where = f"{path}: line {blank + line + 1}"
                raise UserError(f"{where}: a quote in this row is never closed ({error})") from None
            yield from chunk()
            yield bad(f"not CSV: {error} in lines {blank + line + 1} to {blank + reader.line_num}")


def _header_problem(names: list[str]) -> str | None:
    if names and names[0].lower().startswith("sep="):
        return "its first line is Excel's `sep=`: delete that line"
    if len(names) > MOST_COLUMNS:
        return f"has {len(names):,} columns; at most {MOST_COLUMNS:,}"
    if "" in names:
        return f"column {names.index('') + 1} of {len(names)} has no name in the header"
    if twice := [name for name, times in collections.Counter(names).items() if times > 1]:
        return f"the header names {listed(twice)} more than once"
    return None if names else "the file is empty"


def _text_problem(part: str, text: TextIO) -> str | None:
    if "\0" in part:
        return "NUL character"
    if re.search("[\udc80-\udcff]", part) and text.errors != "strict":
        return f"not {text.encoding.removesuffix('-sig').upper()}"
    return "half a surrogate pair" if re.search("[\ud800-\udfff]", part) else None


def _jsonl_rows(path: Path, text: TextIO) -> Iterator[Rows | BadRow]:
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    size = 0  # characters in `records`
    for number, line in enumerate(bounded_lines(text, path), 1):
        if not line.strip():
            continue
        value, problem = _parsed(line)
        problem = problem or _object_problem(value, line, text, _may_be_deep(line))
        if records and (problem or len(records) == ROWS or size > CHARACTERS):
            yield Rows(str(path), lines, records=records, size=size)
            records, lines, size = [], [], 0
        if problem:
            yield BadRow(str(path), number, problem, line[:RAW_KEPT])
        else:
            records.append(value)
            lines.append(number)
            size += len(line)
    if records:
        yield Rows(str(path), lines, records=records, size=size)


def _json_rows(path: Path, text: TextIO) -> Iterator[Rows | BadRow]:
    whole = text.read(LARGEST_WHOLE + 1)
    if len(whole) > LARGEST_WHOLE:
        raise UserError(_too_large(path))
    if sum(map(whole.count, "[{,")) > MOST_VALUES:
        raise UserError(f"{path}: more than {MOST_VALUES:,} values in one .json; make it a .jsonl, a row a line")
    rows, problem = _parsed(whole)
    if isinstance(rows, dict):
        lists = [v for v in rows.values() if isinstance(v, list) and any(isinstance(row, dict) for row in v)]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: {problem or 'expected a list of objects, or an object with exactly one such list'}")
    deep = _may_be_deep(whole)
    judged = ((number, _object_problem(row, whole, text, deep)) for number, row in enumerate(rows, 1))
    for good, group in itertools.groupby(judged, key=lambda item: item[1] is None):
        while good and (lines := [number for number, _ in itertools.islice(group, ROWS)]):
            yield Rows(str(path), lines, records=rows[lines[0] - 1 : lines[-1]])
        for number, problem in group:
            yield BadRow(str(path), number, str(problem), json.dumps(rows[number - 1])[:RAW_KEPT])


def _too_large(path: Path) -> str:
    return f"{path}: larger than the {LARGEST_WHOLE:,} bytes that a .json may have; make it a .jsonl, a row a line"


def _parsed(text: str) -> tuple[Any, str | None]:
    try:
        return json.loads(text.removeprefix("\ufeff")), None  # files with marks, one after the other
    except (ValueError, RecursionError) as error:  # malformed or a number of too many digits, nested too deeply
        return None, f"not JSON: {one_line(error)}"


def _may_be_deep(written: str) -> bool:
    return written.count("[") + written.count("{") > DEEPEST


def _object_problem(value: Any, written: str, text: TextIO, may_be_deep: bool) -> str | None:
    if not isinstance(value, dict):
        return "not an object"
    if len(value) > MOST_COLUMNS:
        return f"has {len(value):,} keys; at most {MOST_COLUMNS:,}"
    if may_be_deep and is_deep(value):
        return f"nested deeper than {DEEPEST} levels"
    may_hold = text.errors != "strict" or "\\u" in written
    return _text_problem(json.dumps(value, ensure_ascii=False), text) if may_hold else None


def is_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and objects stand in each other deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value
    return any(not levels or is_deep(v, levels - 1) for v in inner if isinstance(v, dict | list))


def _parquet_rows(path: Path, raw: BinaryIO) -> Iterator[Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = path.stat().st_size
    try:
        with bounded_memory(BATCH_MEMORY):
            file = pq.ParquetFile(raw)
        if len(names := file.schema_arrow.names) > MOST_COLUMNS:
            raise UserError(f"{path}: {_header_problem(names)}")
        if any(_is_deep_type(field.type) for field in file.schema_arrow):
            raise UserError(f"{path}: a column is nested deeper than {DEEPEST} levels")
        _require_plausible(path, "Parquet", stored, EXPANSION["Parquet"] * file.metadata.num_rows)  # a byte a row
        bytes_of_all = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        rows = UNSUSPECTED * file.metadata.num_rows // max(bytes_of_all, 1)
        yield from _batch_rows(path, file.iter_batches(batch_size=min(max(rows, 1), 1024)), stored)
    except (pa.ArrowException, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not Parquet, or damaged: {one_line(error)}") from None


def _is_deep_type(kind: pa.DataType, levels: int = DEEPEST) -> bool:
    return not levels or any(_is_deep_type(kind.field(i).type, levels - 1) for i in range(kind.num_fields))


def _batch_rows(source: Path | str, batches: Iterator[pa.RecordBatch], stored: int) -> Iterator[Rows]:
    """Rows of CHARACTERS or one row each. A batch of a few bytes may be of any size: values repeat, and are nothing."""
    number, became = 1, 0
    while True:
        try:
            with bounded_memory(BATCH_MEMORY):
                if (batch := next(batches, None)) is None:
                    return
                size = sum(map(_size, batch.columns))
        except MemoryError:
            where = f"{source}: row {number} or the next thousand"
            raise UserError(f"{where}: takes more than {BATCH_MEMORY:,} bytes, or than there are") from None
        became += size
        _require_plausible(source, "Parquet", stored, became)
        rows = max(1, len(batch) * CHARACTERS // max(size, 1))
        for start in range(0, len(batch), rows):
            part = batch.slice(start, rows)
            share = size * len(part) // len(batch)
            yield Rows(str(source), range(number, number + len(part)), part.to_pydict(), size=share)
            number += len(part)


def _size(array: pa.Array) -> int:
    """About the bytes that it takes as a list: those of its texts, and 8 for each value in it, nulls too."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        return _size(array.dictionary_decode())
    if isinstance(array, pa.ExtensionArray):
        return _size(array.storage)
    inner = []
    if pa.types.is_struct(array.type):
        inner = array.flatten()
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        inner = [array.flatten()]
    return 8 * len(array) + (sum(map(_size, inner)) if inner else array.nbytes)


def _dataset_rows(source: str, progress: Callable[[int, int], None]) -> Iterator[Rows]:
    from datasets import load_dataset, load_from_disk
    from pyarrow import ArrowException

    hub = re.fullmatch(r"hub:([^/:]+/[^/:]+)(?:/([^/:]+))?(?::([^:]+))?", source)
    if source.startswith("hub:") and not hub:
        raise UserError(f"{source}: expected hub:owner/name[/config][:split]")
    if hub and Path(hub[1]).exists():  # `datasets` would read that, not the hub
        raise UserError(f"{source}: {hub[1]} stands in the working directory: name that, or go elsewhere for the hub's")
    try:
        dataset = load_dataset(hub[1], hub[2], split=hub[3] or "train") if hub else load_from_disk(source)
    except Exception as error:  # offline, not found, gated, damaged: whatever it is, one line
        raise UserError(f"{source}: cannot be loaded: {one_line(error)}") from None
    total = sum(Path(file["filename"]).stat().st_size for file in dataset.cache_files)
    tables = (dataset.with_format("arrow")[start : start + 1024] for start in range(0, len(dataset), 1024))
    try:
        for rows in _batch_rows(source, (table.combine_chunks().to_batches()[0] for table in tables), total):
            yield rows
            progress(total * rows.lines[-1] // len(dataset), total)
    except (ArrowException, ValueError, OSError) as error:
        raise UserError(f"{source}: damaged: {one_line(error)}") from None


def _find_encoding(path: Path, given: str, note: Callable[[str], None]) -> tuple[str, str]:
    """Codec and error handler, which is "strict" only where the scan saw neither NULs nor undecodable bytes."""
    if given != "auto":
        try:
            "".encode(given)  # LookupError where it encodes no text, as base64 and rot13
            if (known := codecs.lookup(given).name) not in NO_TEXT:
                return "utf-8-sig" if known == "utf-8" else given, "surrogateescape"
        except (LookupError, ValueError):
            pass
        raise UserError(f"data.encoding={given}: not an encoding of text that Python knows (utf-8, cp949, ...)")
    nul, broken, surplus = False, 0, 0  # surplus: the bytes of well-formed sequences but for the first of each
    length = 0  # bytes of the line, or the .json file, so far
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    with path.open("rb") as raw:
        stream = _decompressed(path, raw)
        head = stream.read(CHUNK)
        if bom := next((bom for bom in BOMS if head.startswith(bom)), None):
            return BOMS[bom], "surrogateescape"
        even, odd = head[::2].count(0), head[1::2].count(0)
        utf16 = max(even, odd) > max(4 * min(even, odd), len(head) / 10)  # every other byte of ASCII characters is NUL
        codec = ("utf-16-le" if odd > even else "utf-16-be") if utf16 else ""
        for chunk in [] if codec else itertools.chain([head], iter(lambda: stream.read(CHUNK), b""), [b""]):
            length = _require_bounded(path, chunk, length)
            text = decoder.decode(chunk, final=not chunk)
            nul = nul or "\0" in text
            surplus += len(chunk) - len(text)
            broken += 0 if text.isascii() else len(text) - len(text.encode(errors="ignore").decode())
    if not codec and not broken:
        return "utf-8-sig", "surrogateescape" if nul else "strict"
    codec = codec or ("utf-8-sig" if surplus > broken or head.startswith(codecs.BOM_UTF8) else _legacy_encoding(path))
    but = f" (but for {broken} bytes it is)" if codec == "utf-8-sig" else ""
    note(f"{path}: not UTF-8{but}, read as {codec.removesuffix('-sig')} (assumed; --set data.encoding=... overrides)")
    return codec, "surrogateescape"


def _require_bounded(path: Path, chunk: bytes, length: int) -> int:
    """`length` after one more chunk. Raises UserError where the reading itself would, before all else is scanned."""
    if _kind(path) == ".json":
        if length + len(chunk) > LARGEST_WHOLE:
            raise UserError(_too_large(path))
        return length + len(chunk)
    end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
    length = length + len(chunk) if end < 0 else len(chunk) - end - 1
    if length > 4 * LONGEST_LINE:
        raise UserError(f"{path}: a line is longer than the {LONGEST_LINE:,} characters that it may have")
    return length


class _Lines(io.TextIOBase):
    """Text of a binary stream, a line at a time: UTF-8 where the line is that, else `encoding`."""

    def __init__(self, raw: io.BufferedReader, encoding: str):
        self._raw, self._encoding = raw, encoding
        self._rest = ""  # of the last line

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        size = -1 if size is None else size
        if not self._rest:
            line = self._raw.readline(4 * size + 3 if size >= 0 else -1)  # so many characters and a mark have no more
            for _ in range(3):  # of a longer line, no character is torn
                if not line.endswith(b"\n") and b"\x80" <= self._raw.peek(1)[:1] < b"\xc0":
                    line += self._raw.read(1)
            try:
                self._rest = line.decode("utf-8-sig")
            except UnicodeDecodeError:
                self._rest = line.decode(self._encoding, "replace")
        cut = size if size >= 0 else len(self._rest)
        text, self._rest = self._rest[:cut], self._rest[cut:]
        return text

    def close(self) -> None:
        self._raw.close()
        super().close()


def line_text(raw: io.BufferedReader, encoding: str = "utf-8") -> TextIO:
    """Lines of text that somebody pipes or names: in what their byte order mark says, else in UTF-8, else, where a line
    is not that, in `encoding`. What cannot be read is replaced."""
    head = raw.peek(4)
    if marked := next((codec for bom, codec in BOMS.items() if head.startswith(bom)), None):
        return io.TextIOWrapper(raw, marked, "replace")
    return cast(TextIO, _Lines(raw, encoding))


def stdin_text() -> TextIO:
    """stdin by `line_text`, its own encoding the last resort."""
    own: Any = sys.stdin
    return line_text(own.buffer, own.encoding) if isinstance(own, io.TextIOWrapper) else own


LEGACY = {"gb18030": "gb18030", "big5hkscs": "cp950", "euc_jis_2004": "euc_jp"}  # the codec, by chardet's name for it
LEGACY |= {c: c for c in ("cp1252", "iso8859-15", "cp1250", "iso8859-2", "cp1251", "mac-cyrillic", "cp932", "cp949")}


def _legacy_encoding(path: Path) -> str:
    """The codec that chardet's language models rate best: all of LEGACY within 1 % of the top rating read alike."""
    from chardet import detect_all  # which believes signatures and <meta>: hence the line feeds in front, and no "<"

    sample = b"\n\n"
    with path.open("rb") as raw:
        for line in iter(partial(_decompressed(path, raw).readline, CHUNK), b""):
            sample += b"" if line.isascii() or len(sample) > SAMPLE else line.replace(b"<", b" ")
    if b"\0" in sample:
        raise UserError(f"{path}: not text: it holds NUL bytes, and is not UTF-8 or UTF-16")
    ratings = detect_all(sample, True, compat_names=False, exclude_encodings=["mac-latin2"])  # reads apostrophes as í
    rated = {rating["encoding"]: rating["confidence"] for rating in ratings}
    read = [(rated.get(name, 0.0), codec, sample.decode(codec, "replace")) for name, codec in LEGACY.items()]
    fits = [r for r in read if not re.search("[\x80-\x9f\ue000-\uf8ff\ufffd]", r[2])]  # C1, private use, undecodable
    close = {text: codec for rating, codec, text in reversed(fits) if rating >= 0.99 * max(rated.values())}
    if len(close) == 1 and sum(byte > 127 for byte in sample) >= 10:
        return close.popitem()[1]
    first = {text: codec for _, codec, text in reversed(fits)}  # of those that read alike, the one most in use
    names = list(dict.fromkeys(first[text] for _, _, text in sorted(fits, key=lambda fit: -fit[0])))[:2]
    unsure = f"not UTF-8, and the encoding is not certain ({' or '.join(names) or 'none that is known fits'})"
    raise UserError(f"{path}: {unsure}: name it with --set data.encoding={names[0] if names else '...'}")

"""Rows of Parquet files, saved data sets and data sets on the Hugging Face hub. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from scorefast.data.compressed import EXPANSION_FLOOR, MAX_EXPANSION, require_plausible
from scorefast.data.rows import CHUNK_CHARACTERS, Rows, header_problem
from scorefast.errors import UserError
from scorefast.files.bounded import MAX_COLUMNS, MAX_DEPTH, bounded_memory
from scorefast.files.text import one_line

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_MEMORY = 2**31  # bytes for decoding a batch of 1,024 rows; enforced on Linux


def parquet_rows(path: Path, raw: BinaryIO) -> Iterator[Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = path.stat().st_size
    try:
        with bounded_memory(BATCH_MEMORY):
            file = pq.ParquetFile(raw)
        if len(names := file.schema_arrow.names) > MAX_COLUMNS:
            raise UserError(f"{path}: {header_problem(names)}")
        if any(_is_deep_type(field.type) for field in file.schema_arrow):
            raise UserError(f"{path}: a column is nested deeper than {MAX_DEPTH} levels")
        require_plausible(
            path, "Parquet", stored, MAX_EXPANSION["Parquet"] * file.metadata.num_rows
        )  # at least a byte per row
        bytes_of_all = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        rows = EXPANSION_FLOOR * file.metadata.num_rows // max(bytes_of_all, 1)
        yield from _batch_rows(path, file.iter_batches(batch_size=min(max(rows, 1), 1024)), stored)
    except (pa.ArrowException, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not Parquet, or damaged: {one_line(error)}") from None


def _is_deep_type(kind: pa.DataType, levels: int = MAX_DEPTH) -> bool:
    return not levels or any(_is_deep_type(kind.field(i).type, levels - 1) for i in range(kind.num_fields))


def _batch_rows(source: Path | str, batches: Iterator[pa.RecordBatch], stored: int) -> Iterator[Rows]:
    """Split batches into Rows of at most CHUNK_CHARACTERS, or of one row.

    stored: bytes of the source on disk. A few bytes can decode to a batch of any size, since Parquet encodes repeated
    values and nulls compactly; the decoded size is therefore bounded too.
    """
    number, decoded = 1, 0
    while True:
        try:
            with bounded_memory(BATCH_MEMORY):
                if (batch := next(batches, None)) is None:
                    return
                size = sum(map(_size, batch.columns))
        except MemoryError:
            where = f"{source}: row {number} or the next thousand"
            raise UserError(f"{where}: needs more than {BATCH_MEMORY:,} bytes, or more than are free") from None
        decoded += size
        require_plausible(source, "Parquet", stored, decoded)
        rows = max(1, len(batch) * CHUNK_CHARACTERS // max(size, 1))
        for start in range(0, len(batch), rows):
            part = batch.slice(start, rows)
            share = size * len(part) // len(batch)
            yield Rows(str(source), range(number, number + len(part)), part.to_pydict(), size=share)
            number += len(part)


def _size(array: pa.Array) -> int:
    """Approximate bytes of the array as a list: its texts, plus 8 for each value, nulls included."""
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


def dataset_rows(source: str, progress: Callable[[int, int], None]) -> Iterator[Rows]:
    from datasets import load_dataset, load_from_disk
    from pyarrow import ArrowException

    hub = re.fullmatch(r"hub:([^/:]+/[^/:]+)(?:/([^/:]+))?(?::([^:]+))?", source)
    if source.startswith("hub:") and not hub:
        raise UserError(f"{source}: expected hub:owner/name[/config][:split]")
    if hub and Path(hub[1]).exists():  # `datasets` would read this path instead of the hub
        raise UserError(f"{source}: {hub[1]} is also in the working directory: give its path, or change directory")
    try:
        dataset = load_dataset(hub[1], hub[2], split=hub[3] or "train") if hub else load_from_disk(source)
    except Exception as error:  # offline, not found, gated, damaged, ...
        raise UserError(f"{source}: cannot be loaded: {one_line(error)}") from None
    total = sum(Path(file["filename"]).stat().st_size for file in dataset.cache_files)
    tables = (dataset.with_format("arrow")[start : start + 1024] for start in range(0, len(dataset), 1024))
    try:
        for rows in _batch_rows(source, (table.combine_chunks().to_batches()[0] for table in tables), total):
            yield rows
            progress(total * rows.lines[-1] // len(dataset), total)
    except (ArrowException, ValueError, OSError) as error:
        raise UserError(f"{source}: damaged: {one_line(error)}") from None

"""Supported file types, and decompression with a bound on the expansion ratio. Imports no torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from scorefast.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ACCEPTED = f"{', '.join(KINDS)} (all but .parquet also with {' or '.join(COMPRESSIONS)})"
EXPANSION_FLOOR = 2**28  # bytes that any compressed file may expand to; beyond them MAX_EXPANSION holds
# Decompressed over stored bytes. Texts reach 5 to 30, rows that repeat one long prompt 300.
MAX_EXPANSION = {"gzip": 200, "zstd": 200, "Parquet": 1000}
CHUNK, SAMPLE = 2**20, 2**18  # bytes of one read, and of the sample that detects a legacy encoding


def kind_of(path: Path) -> str:
    """The suffix that selects the reader, without the compression suffix; "" if it is not in KINDS."""
    compressed = path.suffix.lower() in COMPRESSIONS
    kind = Path(path.stem if compressed else path.name).suffix.lower()
    return kind if kind in KINDS and not (compressed and kind == ".parquet") else ""


def decompressed(path: Path, raw: BinaryIO) -> io.BufferedReader:
    if path.suffix.lower() not in COMPRESSIONS:
        return raw  # type: ignore[return-value]
    return io.BufferedReader(_Decompressed(path, raw), SAMPLE)


class _Decompressed(io.RawIOBase):
    """Stream of a compressed file that refuses an implausible expansion ratio."""

    def __init__(self, path: Path, raw: BinaryIO):
        import pyarrow as pa

        self._path, self._raw, self._kind = path, raw, COMPRESSIONS[path.suffix.lower()]
        self._inside, self._decompressed = pa.CompressedInputStream(raw, self._kind), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = int(self._inside.readinto(buffer))
        self._decompressed += count
        require_plausible(self._path, self._kind, self._raw.tell(), self._decompressed)
        return count


def require_plausible(source: Path | str, kind: str, stored: int, decompressed: int) -> None:
    """Raises UserError if `decompressed` bytes exceed both EXPANSION_FLOOR and MAX_EXPANSION times `stored` bytes."""
    if decompressed > max(EXPANSION_FLOOR, MAX_EXPANSION[kind] * stored):
        unpack = "" if kind == "Parquet" else "; if the file is genuine, decompress it first"
        raise UserError(f"{source}: expands to more than {MAX_EXPANSION[kind]} times its size as {kind}{unpack}")

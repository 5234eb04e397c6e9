"""Kinds of files, and what compressed ones hold, as long as it is not many times what texts compress to."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from scorefast.errors import UserError

if TYPE_CHECKING:
    pass

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ACCEPTED = f"{', '.join(KINDS)} (all but .parquet also with {' or '.join(COMPRESSIONS)})"
UNSUSPECTED = 2**28  # bytes that any compressed file may become; then as many times its own as EXPANSION says
EXPANSION = {"gzip": 200, "zstd": 200, "Parquet": 1000}  # of texts: 5 to 30; of the same long prompt in each row: 300
CHUNK, SAMPLE = 2**20, 2**18  # bytes read at a time, and looked at to tell a legacy encoding


def kind_of(path: Path) -> str:
    """The suffix that says how to read a file, its compression's left out; "" if it is none of KINDS."""
    compressed = path.suffix.lower() in COMPRESSIONS
    kind = Path(path.stem if compressed else path.name).suffix.lower()
    return kind if kind in KINDS and not (compressed and kind == ".parquet") else ""


def decompressed(path: Path, raw: BinaryIO) -> io.BufferedReader:
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
        require_plausible(self._path, self._kind, self._raw.tell(), self._given)
        return count


def require_plausible(source: Path | str, kind: str, stored: int, became: int) -> None:
    if became > max(UNSUSPECTED, EXPANSION[kind] * stored):
        unpack = "" if kind == "Parquet" else "; unpack it first if that is meant"
        raise UserError(f"{source}: becomes more than {EXPANSION[kind]} times what it takes as {kind}{unpack}")

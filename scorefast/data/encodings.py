"""Detect the encoding of a text file by its byte order mark, else by its bytes, or refuse it. Imports no torch."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scorefast.data.compressed import CHUNK, SAMPLE, decompressed, kind_of
from scorefast.data.rows import MAX_JSON_BYTES, json_too_large
from scorefast.errors import UserError
from scorefast.files.lines import BOMS, LONGEST_LINE

NON_TEXT_CODECS = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"}  # codecs for other purposes


def find_encoding(path: Path, given: str, note: Callable[[str], None]) -> tuple[str, str]:
    """The codec and the error handler, "strict" only where the scan found neither NULs nor undecodable bytes."""
    if given != "auto":
        try:
            "".encode(given)  # LookupError if it is no text encoding, such as base64 or rot13
            if (known := codecs.lookup(given).name) not in NON_TEXT_CODECS:
                return "utf-8-sig" if known == "utf-8" else given, "surrogateescape"
        except (LookupError, ValueError):
            pass
        raise UserError(f"data.encoding={given}: not a text encoding that Python knows (utf-8, cp949, ...)")
    nul, broken, surplus = False, 0, 0  # surplus: continuation bytes of well-formed sequences
    length = 0  # bytes of the current line, or of the .json file
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    with path.open("rb") as raw:
        stream = decompressed(path, raw)
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
    invalid = f" ({broken} invalid bytes)" if codec == "utf-8-sig" else ""
    note(
        f"{path}: not UTF-8{invalid}, read as {codec.removesuffix('-sig')} (assumed; --set data.encoding=... overrides)"
    )
    return codec, "surrogateescape"


def _require_bounded(path: Path, chunk: bytes, length: int) -> int:
    """`length` after one more chunk. Raises the UserError of the reader early, before the rest is scanned."""
    if kind_of(path) == ".json":
        if length + len(chunk) > MAX_JSON_BYTES:
            raise UserError(json_too_large(path))
        return length + len(chunk)
    end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
    length = length + len(chunk) if end < 0 else len(chunk) - end - 1
    if length > 4 * LONGEST_LINE:
        raise UserError(f"{path}: a line is longer than {LONGEST_LINE:,} characters")
    return length


LEGACY = {"gb18030": "gb18030", "big5hkscs": "cp950", "euc_jis_2004": "euc_jp"}  # chardet's name -> codec
LEGACY |= {c: c for c in ("cp1252", "iso8859-15", "cp1250", "iso8859-2", "cp1251", "mac-cyrillic", "cp932", "cp949")}


def _legacy_encoding(path: Path) -> str:
    """The codec that chardet's language models rate best, if all LEGACY codecs within 1 % of it decode to one text."""
    from chardet import detect_all  # trusts signatures and <meta>: hence the leading line feeds, and no "<"

    sample = b"\n\n"
    with path.open("rb") as raw:
        for line in iter(partial(decompressed(path, raw).readline, CHUNK), b""):
            sample += b"" if line.isascii() or len(sample) > SAMPLE else line.replace(b"<", b" ")
    if b"\0" in sample:
        raise UserError(f"{path}: not text: it contains NUL bytes and is not UTF-8 or UTF-16")
    ratings = detect_all(sample, True, compat_names=False, exclude_encodings=["mac-latin2"])  # reads apostrophes as í
    rated = {rating["encoding"]: rating["confidence"] for rating in ratings}
    read = [(rated.get(name, 0.0), codec, sample.decode(codec, "replace")) for name, codec in LEGACY.items()]
    fits = [r for r in read if not re.search("[\x80-\x9f\ue000-\uf8ff\ufffd]", r[2])]  # C1, private use, undecodable
    close = {text: codec for rating, codec, text in reversed(fits) if rating >= 0.99 * max(rated.values())}
    if len(close) == 1 and sum(byte > 127 for byte in sample) >= 10:
        return close.popitem()[1]
    first = {text: codec for _, codec, text in reversed(fits)}  # of codecs that decode alike, the most common
    names = list(dict.fromkeys(first[text] for _, _, text in sorted(fits, key=lambda fit: -fit[0])))[:2]
    unsure = f"not UTF-8, and the encoding is not certain ({' or '.join(names) or 'no known one fits'})"
    raise UserError(f"{path}: {unsure}: name it with --set data.encoding={names[0] if names else '...'}")

"""Read lines of bounded length from an untrusted text stream. Imports no torch."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from functools import partial
from typing import TextIO, cast

from scorefast.errors import UserError

LONGEST_LINE = LARGEST_CELL = 2**25  # characters; bounds a cell whose quote is never closed
BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def bounded_lines(text: TextIO, name: object, longest: int = LONGEST_LINE) -> Iterator[str]:
    """Yields lines with their line ends. Raises UserError with the number of a line that is longer."""
    for number, line in enumerate(iter(partial(text.readline, longest + 1), ""), 1):
        if len(line) > longest:
            raise UserError(f"{name}: line {number}: longer than {longest:,} characters, the most for a line")
        yield line


class _Lines(io.TextIOBase):
    """Decodes a binary stream line by line: as UTF-8 where it is valid, else as `encoding`."""

    def __init__(self, raw: io.BufferedReader, encoding: str):
        self._raw, self._encoding = raw, encoding
        self._rest = ""  # of the current line

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        size = -1 if size is None else size
        if not self._rest:
            line = self._raw.readline(
                4 * size + 3 if size >= 0 else -1
            )  # the most bytes of `size` characters and a byte order mark
            for _ in range(3):  # complete a character that the size limit split
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
    """A text stream over user input: decoded by its byte order mark, else as UTF-8.

    Without a mark, a line that is not UTF-8 is decoded as `encoding`. Undecodable bytes are replaced.
    """
    head = raw.peek(4)
    if marked := next((codec for bom, codec in BOMS.items() if head.startswith(bom)), None):
        return io.TextIOWrapper(raw, marked, "replace")
    return cast(TextIO, _Lines(raw, encoding))


def stdin_text() -> TextIO:
    """stdin through `line_text`, with stdin's own encoding as the fallback."""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return sys.stdin
    return line_text(cast(io.BufferedReader, sys.stdin.buffer), sys.stdin.encoding)

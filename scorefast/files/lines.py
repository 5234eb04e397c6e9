"""Lines of a stream that another program or person writes, of bounded length. Imports no torch."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO, cast

from scorefast.errors import UserError

if TYPE_CHECKING:
    pass

LONGEST_LINE = LARGEST_CELL = 2**25  # characters; bounds what a quote that is never closed can swallow
BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def bounded_lines(text: TextIO, name: object, longest: int = LONGEST_LINE) -> Iterator[str]:
    """Lines with their ends. Raises UserError, with the line's number, where one is longer."""
    for number, line in enumerate(iter(partial(text.readline, longest + 1), ""), 1):
        if len(line) > longest:
            raise UserError(f"{name}: line {number}: longer than the {longest:,} characters that a line may have")
        yield line


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

"""Text on one line: shortened, listed, printable. Normal form of a question. Imports no torch."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any


def shortened(text: str, most: int = 300) -> str:
    """The text on one line, its middle left out where it is long."""
    line = " ".join(text[: 10 * most].split())
    return line if len(line) <= most and len(text) <= 10 * most else f"{line[: most - 3]}..."


def listed(names: Iterable[Any]) -> str:
    """Names in a line, of many the first."""
    every = list(names)
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return ", ".join(shortened(str(name), 50) for name in every[:20]) + more


def one_line(error: BaseException) -> str:
    return shortened(str(error)) or type(error).__name__


HIDDEN = {"Cc", "Cf", "Cs"}  # the last, halves of surrogate pairs, no terminal can be sent


def printable(text: str) -> str:
    """Text of a model or a file, safe on a terminal: control characters but newline and tab become visible."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in HIDDEN else f"\\x{ord(c):02x}" for c in text)


def json_line(content: Any) -> str:
    """JSON on one line, safe on a terminal: what `printable` makes visible stands as \\uXXXX, which reads the same."""
    text = json.dumps(content, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if unicodedata.category(c) in HIDDEN else c for c in text)


def normalized(text: str) -> str:
    """NFKC, case-folded, white space collapsed: two questions with the same normal form are the same question."""
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def without_calculator(text: str) -> str:
    """Without GSM8K's calculator marks: `48/2 = <<48/2=24>>24` is `48/2 = 24`."""
    return _CALCULATOR.sub("", text)

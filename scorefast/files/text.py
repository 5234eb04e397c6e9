"""Format text for messages and terminals, and normalize questions. Imports no torch."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable


def shortened(text: str, most: int = 300) -> str:
    """The text on one line, cut after `most` characters."""
    line = " ".join(text[: 10 * most].split())
    return line if len(line) <= most and len(text) <= 10 * most else f"{line[: most - 3]}..."


def listed(names: Iterable[object]) -> str:
    """The names on one line: the first 20 and the number of the others."""
    every = list(names)
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return ", ".join(shortened(str(name), 50) for name in every[:20]) + more


def one_line(error: BaseException) -> str:
    return shortened(str(error)) or type(error).__name__


HIDDEN = {"Cc", "Cf", "Cs"}  # Unicode categories: control, format, and surrogates, which no terminal can encode


def printable(text: str) -> str:
    """Escape control characters except newline and tab, so that untrusted text is safe on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in HIDDEN else f"\\x{ord(c):02x}" for c in text)


def json_line(content: object) -> str:
    """JSON on one line, safe on a terminal: characters that `printable` escapes become \\uXXXX."""
    text = json.dumps(content, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if unicodedata.category(c) in HIDDEN else c for c in text)


def normalized(text: str) -> str:
    """NFKC, case-folded, white space collapsed. Questions with the same normal form count as the same question."""
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def without_calculator(text: str) -> str:
    """Remove GSM8K's calculator annotations: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    return _CALCULATOR.sub("", text)

"""Formulas: which one a text commits to, whether a text is one, whether two are equal. Imports no torch."""

from __future__ import annotations

import re
from functools import lru_cache

from scorefast.answers import final_answer, last_line
from scorefast.math_worker import MathWorker
from scorefast.numbers import parse_number, plain
from scorefast.stated import final_number

_DENIED_SPAN = re.compile(
    r"\W*(?:(?:is|are|was)\s+(?:not|wrong|incorrect|false)|isn't|번?[은는이가]?\s?(?:아니|아닙|틀))"
)
_SPAN = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$(.+?)(?<!\\)\$", re.DOTALL)
_LITERAL = re.compile(r"\\[lcvd]?dots\b|\.\.\.|\d\s*_\{?\d")  # 1, 2, ..., n and 52_8: math-verify reads only a part
_UNDONE = re.compile(r"[\s\d.,+\-*/^÷(){}$]*[\d}][\s)$]*[-+*÷][\s\d.,+\-*/^÷(){}$]*[A-Za-z가-힣° ]*")  # 9 + 9 cm
_OR = re.compile(
    r"\s*(?:,\s*)?(?:\\text\s*\{\s*(?:,\s*)?(?:or|and)\s*\}|\b(?:or|and|maybe|possibly|perhaps)\b"
    r"(?:\s+(?:possibly|perhaps|maybe))?|또는|혹은|아니면|그리고)\s*"
)


def expression(text: str) -> str:
    """The LaTeX a text commits to: its marked answer, else its last formula, else its last line if that is short."""
    final = final_answer(text)
    if final.marked:
        spans = list(_SPAN.finditer(final.text)) if not final.whole else []
        said = final.text
        if len(spans) == 1:
            if _denied_span(final.text, spans[0]):
                return ""
            said = next(filter(None, spans[0].groups()))
        return _tidy(said)
    line = last_line(text)
    spans = list(_SPAN.finditer(text))
    if spans and not text[spans[-1].end() :].strip(" \n.*"):
        line = text[max(spans[-1].start() - 200, 0) :]  # ends on a formula, which may take several lines
    if line.rstrip().endswith("?"):
        return ""
    spans = list(_SPAN.finditer(line))
    if spans:
        first = len(spans) - 1
        while first and _OR.fullmatch(line[spans[first - 1].end() : spans[first].start()]):
            first -= 1  # "$1$ or $2$" is one answer of two values
        if _denied_span(line, spans[-1]):
            return ""
        return _tidy(", ".join(next(filter(None, s.groups())) for s in spans[first:]))
    return _tidy(line) if len(line) <= 80 else str(final_number(text) or "")


def _denied_span(text: str, span: re.Match[str]) -> bool:
    return bool(
        re.search(r"(?:\bnot|n't|\bcannot)\s*(?:be\s*)?$", text[: span.start()]) or _DENIED_SPAN.match(text, span.end())
    )


def _tidy(text: str) -> str:
    text = text.strip().strip("$").strip().rstrip(".").strip("*").strip()[:1000]
    if re.match(r"not\b", text, re.IGNORECASE):
        return ""
    text = re.sub(r"\\(?:mathrm|text|mathbf)\s*\{(\w)\}", r"\1", text).replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"(?<=\d)_\{(\d+)\}", r"_\1", text)
    return re.sub(r",\s*,", ",", _OR.sub(", ", text))


def equal(answer: str, truth: str) -> bool:
    """Whether two expressions are equal as mathematics; a sum left undone is not its plain result."""
    members = [parse_number(part) for part in answer.split("=")]
    if len(members) > 1 and None not in members and len({m.value for m in members if m}) > 1:
        return False  # 20 = 18
    if parse_number(truth.split("=")[-1]) and not any(members) and _UNDONE.fullmatch(plain(answer.split("=")[-1])):
        return False
    same = "".join(answer.split()) == "".join(truth.split())
    return same or (not _LITERAL.search(answer + truth) and _asked(truth, answer))


WORKER = MathWorker()


@lru_cache(maxsize=4096)
def _asked(truth: str, answer: str) -> bool:
    return WORKER.equal(truth, answer)

"""Grades and rewards: pure functions of texts and numbers. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from scorefast.data import normalized
from scorefast.recipe import OriginReward

Grader = Literal["auto", "numeric", "exact"]

_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?|(?<![\w.])[-+\u2212]?\$?\d+(?:\.\d+)?(?:/\d+)?%?"
)
_MARKER = re.compile(r"####|\\boxed\{")
_TAIL = " .,;:!?)}*$"  # what may follow a number at the end of a reference
_EDGES = " .,;:!?*_`\"'()[]"  # markup and punctuation around an answer in words


@dataclass(frozen=True)
class Grade:
    """correct: counted as right. score in [0, 1]: how close, 1 exactly when correct. answer: what was graded."""

    correct: bool
    score: float
    answer: str = ""


def parse_number(text: str) -> Fraction | None:
    """The value of one number such as `-3`, `1,234.50`, `$18`, `3/4` or `75%`; None for anything else."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    text = text.replace(",", "").replace("$", "").replace("\u2212", "-")
    percent = text.endswith("%")
    try:
        value = Fraction(text.rstrip("%"))
    except (ZeroDivisionError, ValueError):  # 1/0; more digits than Python converts
        return None
    return value / 100 if percent else value


def extract_number(reply: str) -> Fraction | None:
    """The number a reply ends on: its last one, or the first after its last `####` or `\\boxed{` where there is one."""
    markers = list(_MARKER.finditer(reply))
    if markers:
        after = _NUMBER.search(reply, markers[-1].end())
        if after:
            return parse_number(after.group())
    found = _NUMBER.findall(reply)
    return parse_number(found[-1]) if found else None


def ends_on_number(reference: str) -> bool:
    """Whether a reference answer is one to compare as a number: `18`, `... #### 18`, `It is $18.`, not `May 1st`."""
    if _MARKER.search(reference):
        return extract_number(reference) is not None
    stripped = reference.rstrip(_TAIL)
    return any(match.end() >= len(stripped) for match in _NUMBER.finditer(reference))


def grade(reply: str, reference: str, grader: Grader = "auto") -> Grade:
    """Grade one reply against the reference answer.

    `numeric` compares the number the reply ends on with the one the reference ends on, as exact fractions; its score
    is 1 - |reply - reference| / max(|reference|, 1), never below 0 and below 1 unless equal. `exact` compares normal
    forms (NFKC, case, white space, without punctuation or markup at the edges) of the whole reply, or of its last
    line; its score is the ratio of matching characters. `auto` is `numeric` where the reference ends on a number,
    else `exact`.
    """
    if grader == "numeric" or (grader == "auto" and ends_on_number(reference)):
        return _grade_number(extract_number(reply), extract_number(reference))
    right = _bare(reference)
    lines = [_bare(reply), _bare(reply.strip().rsplit("\n", 1)[-1])]
    if right in lines:
        return Grade(True, 1.0, right)
    ratio = max(difflib.SequenceMatcher(None, line, right, autojunk=False).ratio() for line in lines)
    return Grade(False, min(ratio, 1 - 1e-9), lines[-1])


def _grade_number(value: Fraction | None, truth: Fraction | None) -> Grade:
    if value is None or truth is None:
        return Grade(False, 0.0)
    if value == truth:
        return Grade(True, 1.0, str(value))
    closeness = 1 - float(min(abs(value - truth) / max(abs(truth), Fraction(1)), Fraction(1)))
    return Grade(False, min(closeness, 1 - 1e-9), str(value))


def _bare(text: str) -> str:
    return normalized(text).strip(_EDGES)


def correctness_reward(
    completions: Sequence[Any], correct_answer: Sequence[str], grader: Grader = "auto", **_: Any
) -> list[float]:
    """1.0 for each correct completion, else 0.0. TRL's reward signature: columns come as keyword lists,
    a completion is a string or a list of chat messages."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(grade(text, answer, grader).correct) for text, answer in zip(texts, correct_answer, strict=True)]


def paper_shaped(r1: float, r2: float, alpha: float) -> float:
    """r2 + alpha * (r2 - r1): the second attempt's reward in Stage II (arXiv 2409.12917, section 5.2)."""
    return r2 + alpha * (r2 - r1)


def origin_shaped(first: Grade, second: Grade, values: OriginReward) -> float:
    """The origin's reward: what the second attempt did to the first decides, not its correctness alone."""
    if second.correct:
        return values.kept if first.correct else values.corrected
    if first.correct or second.score < first.score:
        return values.worse
    return values.partial if second.score > first.score else values.unchanged

"""Examples graded: by their own grader, by the recipe's, or in TRL's signature. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from scorefast.data.example import Example
from scorefast.errors import UserError
from scorefast.grading.answer import Grade
from scorefast.grading.grade import auto_grader, grade, unusable_reference
from scorefast.schema import GraderName


def chosen_grader(example: Example, grader: GraderName) -> GraderName:
    """The row's own grader, else `grader`; where that is auto, the one that fits the reference."""
    own = example.grader or grader
    return auto_grader(example.correct_answer) if own == "auto" else own


def check_references(examples: Iterable[Example], grader: GraderName, *, some: bool = False) -> list[str]:
    """One line for each reason why no reply can be right by some rows' reference and grader.

    Raises UserError where that is so for every row and `some` have to be usable.
    """
    rows = list(examples)
    reasons = Counter(unusable_reference(e.correct_answer, e.grader or grader) for e in rows)
    usable = reasons.pop(None, 0)
    if some and reasons and not usable:
        raise UserError(f"no reply can ever be graded right, by any of {len(rows)} rows: {next(iter(reasons))}")
    return [f"{n} of {len(rows)} rows can never be graded right: {reason}" for reason, n in reasons.items()]


def grade_example(reply: str, example: Example, grader: GraderName) -> Grade:
    """By the row's own grader where the data names one, else by `grader`."""
    return grade(reply, example.correct_answer, example.grader or grader, example.question)


def correctness_reward(
    completions: Sequence[Any],
    correct_answer: Sequence[str],
    grader: GraderName | Sequence[GraderName] = "auto",
    question: Sequence[str] | None = None,
    **_: Any,
) -> list[float]:
    """1.0 for each correct completion, else 0.0, in TRL's signature: for use in a TRL trainer, and as a pattern."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    graders = [grader] * len(texts) if isinstance(grader, str) else grader
    questions: Sequence[str | None] = question or [None] * len(texts)
    rows = zip(texts, correct_answer, graders, questions, strict=True)
    return [float(grade(*row).correct) for row in rows]

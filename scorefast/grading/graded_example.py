"""Grade examples with their own grader or the recipe's, and as a reward in TRL's signature. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from scorefast.data.example import Example
from scorefast.errors import UserError
from scorefast.grading.answer import Grade
from scorefast.grading.grade import auto_grader, grade, unusable_reference
from scorefast.schema import GraderName


def chosen_grader(example: Example, grader: GraderName) -> GraderName:
    """The row's own grader, else `grader`, with auto resolved by the reference."""
    own = example.grader or grader
    return auto_grader(example.correct_answer) if own == "auto" else own


def check_references(examples: Iterable[Example], grader: GraderName, *, some: bool = False) -> list[str]:
    """One line for each reason why no reply to some rows can be graded correct.

    some: raise UserError if no row is usable.
    """
    rows = list(examples)
    reasons = Counter(unusable_reference(e.correct_answer, e.grader or grader) for e in rows)
    usable = reasons.pop(None, 0)
    if some and reasons and not usable:
        raise UserError(f"no reply to any of {len(rows)} rows can be graded right: {next(iter(reasons))}")
    return [f"{n} of {len(rows)} rows can never be graded right: {reason}" for reason, n in reasons.items()]


def grade_example(reply: str, example: Example, grader: GraderName) -> Grade:
    """Grade a reply with the row's own grader, else with `grader`."""
    return grade(reply, example.correct_answer, example.grader or grader, example.question)


def correctness_reward(
    completions: Sequence[str | Sequence[Mapping[str, str]]],
    correct_answer: Sequence[str],
    grader: GraderName | Sequence[GraderName] = "auto",
    question: Sequence[str] | None = None,
    **_: object,
) -> list[float]:
    """1.0 for each correct completion, else 0.0, in TRL's signature: for a TRL trainer, or as a template."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    graders = [grader] * len(texts) if isinstance(grader, str) else grader
    questions: Sequence[str | None] = question or [None] * len(texts)
    rows = zip(texts, correct_answer, graders, questions, strict=True)
    return [float(grade(*row).correct) for row in rows]

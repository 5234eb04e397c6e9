"""Does the second attempt read the first? Turn 2 again, with the first attempt replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scorefast.data.example import Example
from scorefast.model.chat_format import ChatFormat
from scorefast.rl.evaluate import GradeReply, grade_all
from scorefast.rl.rollout import Generate, first_attempts, second_attempts
from scorefast.rl.trajectory import Attempt, attempt
from scorefast.stats import wilson


def probe(
    greedy: Generate, sample: Generate, chat: ChatFormat, examples: Sequence[Example], grade: GradeReply
) -> dict[str, dict[str, Any]]:
    """Does the second attempt READ the first? Turn 2 again, with the first attempt replaced.

    correct: by the data's correct answer (how often is right kept right?); wrong: by a wrong attempt sampled from the
    same model for the same question (how often is it fixed?); unrelated: by the greedy attempt at another question;
    empty: by an empty reply. All four are measured on the same questions, those for which one of 8 samples is wrong.
    If `unrelated` and `empty` equal `wrong`, the model answers anew without reading.
    """
    wrong = _sampled_wrong(sample, chat, examples, grade)
    asked = [e for e in examples if e.id in wrong]
    own = first_attempts(greedy, chat, asked)
    given: dict[str, list[Attempt]] = {
        "correct": [_given(chat, e.correct_answer) for e in asked],
        "wrong": [wrong[e.id] for e in asked],
        "unrelated": own[1:] + own[:1] if len(asked) > 1 else [],
        "empty": [_given(chat, "") for _ in asked],
    }
    rates = {}
    for kind, attempts in given.items():
        graded = grade_all(second_attempts(greedy, chat, asked[: len(attempts)], attempts), grade)
        right, n = sum(g.second.correct for g in graded), len(graded)
        rates[kind] = {"right_after": right / n if n else None, "ci95": wilson(right, n), "n": n}
    return rates


def _given(chat: ChatFormat, text: str) -> Attempt:
    return attempt(chat, chat.reply(text))


def _sampled_wrong(
    sample: Generate, chat: ChatFormat, examples: Sequence[Example], grade: GradeReply, tries: int = 8
) -> dict[str, Attempt]:
    wrong: dict[str, Attempt] = {}
    for _ in range(tries):
        left = [e for e in examples if e.id not in wrong]
        if not left:
            break
        for e, y1 in zip(left, first_attempts(sample, chat, left), strict=True):
            if not grade(y1.text, e).correct:
                wrong[e.id] = y1
    return wrong

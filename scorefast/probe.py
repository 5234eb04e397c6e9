"""Probe whether the second attempt reads the first, by replacing the first attempt."""

from __future__ import annotations

from collections.abc import Sequence

from scorefast.data.example import Example
from scorefast.data.trajectory import Attempt
from scorefast.model.chat_format import ChatFormat
from scorefast.rl.rollout import Generate, GradeReply, attempt, first_attempts, grade_all, second_attempts
from scorefast.stats import ProbeRates, wilson


def probe(
    greedy: Generate, sample: Generate, chat: ChatFormat, examples: Sequence[Example], grade: GradeReply
) -> ProbeRates:
    """Run turn 2 with four replacements of the first attempt; returns how often it is right after each.

    correct: the data's correct answer; the rate is how often right stays right. wrong: a wrong attempt that the same
    model sampled for the same question; the rate is how often it is fixed. unrelated: the greedy attempt at another
    question. empty: an empty reply. All four use the same questions, those for which one of 8 samples is wrong. If
    `unrelated` and `empty` equal `wrong`, the model answers again without reading its first attempt.
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
    rates: ProbeRates = {}
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
    """The first of up to `tries` samples that is wrong, by the id of its question."""
    wrong: dict[str, Attempt] = {}
    for _ in range(tries):
        left = [e for e in examples if e.id not in wrong]
        if not left:
            break
        for e, y1 in zip(left, first_attempts(sample, chat, left), strict=True):
            if not grade(y1.text, e).correct:
                wrong[e.id] = y1
    return wrong

"""Graders: whether a reply is correct, and how near it is. Every reported metric depends on them. Imports no torch.

A grader sees the reply, the reference answer and, if given, the question. `answer` decides which part of the reply
counts; `stated`, `letters` and `formulas` extract a number, a letter or a formula from that part.
`benchmarks/results/graders.md` shows where graders differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, cast, get_args

from scorefast.grading.answer import MAX_CHARACTERS, Grade, cached_if_short, final_answer
from scorefast.grading.formulas import equal, expression, in_words, is_formula, is_more_than_a_number
from scorefast.grading.letters import LETTER_ALONE, chosen_letter, reference_letter
from scorefast.grading.literal import BELOW_ONE, grade_contains, grade_exact, similarity
from scorefast.grading.numbers import Number, parse_number
from scorefast.grading.stated import final_number, is_numeric_reference, number_or_reason, reference_number
from scorefast.grading.texts import grade_text, other_unit
from scorefast.grading.thoughts import without_thoughts
from scorefast.grading.words import in_digits
from scorefast.schema import GraderName

Chosen = Literal["text", "numeric", "math", "exact", "choice", "contains"]  # every GraderName but auto
GRADERS: tuple[Chosen, ...] = get_args(Chosen)

SHORT = 300  # most characters of a reply that `auto` may grade as text if the reference is a number


def grade(reply: str, reference: str, grader: GraderName = "auto", question: str | None = None) -> Grade:
    """Grade one reply against its reference answer.

    numeric: the one number that the reply commits to equals the reference's number as an exact fraction: 3/4 = 0.75 =
      75 %. Units are ignored and there is no tolerance; a percentage also equals the bare number of per cent. Score
      1 / (1 + |a - r| / |r|).
    math: mathematically equal by math-verify, in a separate process with a time limit. An unevaluated sum or product of
      plain numbers (`9 + 9`) is wrong if the reference is a plain number.
    text: the one answer of the reply states what the reference adds to the question, in English or Korean words that
      the rules of `texts` know. Other words make it `unsure`, which is wrong.
    exact: the marked answer equals the reference's, up to NFKC, case, white space and punctuation at the edges of
      words. Without a marker, the last line or the whole reply must equal it.
    choice: the one letter A to E, or ① to ⑤, that the reply commits to; up to J if the reference is such a letter. Of
      `A. Wait, no, B.` the last letter counts.
    contains: the marked answer or the last line contains the reference as a word, neither denied nor among others.
    auto: the grader that `auto_grader` chooses for the reference. For a number it also accepts an equal formula, as
      math does, or a short text that states the number in words, as text does; it refuses another unit.

    Thoughts before the answer do not count; a thought that never closes leaves no answer. Sentences of `question` that
    the reply repeats are not part of its answer. Score of a wrong reply: text gives the stated share of the reference's
    words if unsure, else 0; math, exact and contains give the better of rapidfuzz's edit and token-sort ratios.
    """
    said, right = without_thoughts(reply), without_thoughts(reference)
    if said is None or right is None:
        return Grade(False, 0.0, reason=f"the thought{'' if said is None else ' of the reference'} never closes")
    chosen = auto_grader(right) if grader == "auto" else cast(Chosen, grader)
    said, right = said[-MAX_CHARACTERS:], right[-MAX_CHARACTERS:]
    if question and chosen != "choice":  # options are part of the question
        said = without_question(said, question)
    found = _GRADES[chosen](said, right, question)
    return _with_words(found, said, right, question) if grader == "auto" and chosen == "numeric" else found


_OR = re.compile(r"\b(?:or|either)\b|또는|혹은|아니면|이나|거나", re.IGNORECASE)


def _with_words(found: Grade, reply: str, reference: str, question: str | None) -> Grade:
    """The numeric grade as `auto` adjusts it: another unit is wrong, and an equal formula is right, as is a short text
    that states the number in words, as a time, or with a conversion in brackets."""
    if found.correct:
        other = other_unit(reply, reference)
        if other:
            return Grade(False, 0.0, found.answer, f"another unit: {other}")
        if len(reply) <= SHORT and _OR.search(reply):
            return _numeric(in_digits(reply), reference)  # `18 or nineteen`
        return found
    if found.reason in ("no number", "part of a formula") and is_formula(expression(reply)):
        return _math(reply, reference)  # `\\binom{6}{2}` for 15
    if len(reply) > SHORT or not found.reason.startswith(("no number", "reads ", "a sum left undone")):
        return found
    by_text = grade_text(reply, reference, question)
    return by_text if by_text.correct else found


@cached_if_short
def auto_grader(reference: str) -> Chosen:
    """The grader for a reference answer: choice for a single letter A to J, numeric if it ends in a number, math for
    formulas, equations, sets and lists of numbers, else text."""
    reference = without_thoughts(reference) or ""
    if LETTER_ALONE.fullmatch(reference.strip()):
        return "choice"
    final = final_answer(reference).text.strip()
    if not is_more_than_a_number(final) and is_numeric_reference(reference):
        return "numeric"
    return "math" if is_formula(final) or re.search(r"\\[a-zA-Z]+|\$[^$]+\$", reference) else "text"


_WORDS = re.compile(r"[^\W\d_가-힣]{2,}|(?=[가-힣])[가-힣]|(?<=[가-힣])[가-힣]+")


def without_question(reply: str, question: str) -> str:
    """The reply without the sentences of the question that it repeats.

    Sentences of fewer than three words stay, since they may be options; a Korean word counts as two.
    """
    for sentence in re.split(r"(?<=[.!?。？])\s+|\n", question.strip()):
        if len(_WORDS.findall(sentence)) >= 3 and sentence in reply:
            reply = reply.replace(sentence, "\n")
    return reply


def unusable_reference(reference: str, grader: GraderName) -> str | None:
    """Why no reply can be correct with this reference and grader, as a message for the data's owner; else None.

    auto always chooses a grader that fits.
    """
    if not reference.strip():
        return "correct_answer is blank"
    if (right := without_thoughts(reference)) is None:
        return "correct_answer is a thought that never closes"
    reference = right
    if grader == "numeric" and reference_number(reference[-MAX_CHARACTERS:]) is None:
        return "correct_answer contains no number, which grader numeric needs"
    if grader == "choice" and reference_letter(reference[-MAX_CHARACTERS:]) is None:
        return "correct_answer is not a single letter A to J, which grader choice needs"
    return None


def _numeric(reply: str, reference: str) -> Grade:
    truth = reference_number(reference)
    if truth is None:
        return Grade(False, 0.0, reason="the reference is not one number")
    number = number_or_reason(reply)
    return compare_numbers(number, truth) if isinstance(number, Number) else Grade(False, 0.0, reason=number)


def compare_numbers(number: Number, truth: Number) -> Grade:
    """Correct if any readings are equal, else score 1 / (1 + relative error), or absolute error if the truth is 0."""
    said, right = str(number), str(truth)
    if number.value == truth.value:
        return Grade(True, 1.0, said, f"{said} = {right}")
    pairs = [(a, r) for a in number.readings() for r in truth.readings() if a == number.value or r == truth.value]
    if any(a == r for a, r in pairs):
        return Grade(True, 1.0, said, f"{said} for {right}")
    score = min(max(_nearness(a, r) for a, r in pairs), BELOW_ONE)
    return Grade(False, score, said, f"reads {said}, not {right}")


def _nearness(a: Fraction | int, r: Fraction | int) -> float:
    """1 / (1 + |a - r| / |r|), computed in integers and rounded once."""
    size = abs(r.numerator) * a.denominator or a.denominator * r.denominator
    return size / (size + abs(a.numerator * r.denominator - r.numerator * a.denominator))


def _choice(reply: str, reference: str) -> Grade:
    truth = reference_letter(reference)
    letter = chosen_letter(reply, more=truth is not None and truth > "E")
    if letter is None or truth is None:
        return Grade(
            False, 0.0, reason="no single letter" if letter is None else "the reference is not a single letter"
        )
    right = letter == truth
    return Grade(right, float(right), letter, f"{letter} = {truth}" if right else f"reads {letter}, not {truth}")


def _math(reply: str, reference: str) -> Grade:
    answer, truth = expression(reply), expression(reference)
    if not answer or not truth:
        return Grade(False, 0.0, answer, "no formula" if truth else "the reference contains no formula")
    number, right = parse_number(answer), parse_number(truth)
    if number is None and right is not None and in_words(answer):
        number = final_number(reply)  # `\\$26 per week`
    if number is not None and right is not None:
        return compare_numbers(number, right)
    correct, why = equal(answer, truth)
    return Grade(correct, 1.0 if correct else similarity(answer, truth), answer, why)


def _ignoring_question(graded: Callable[[str, str], Grade]) -> Callable[[str, str, str | None], Grade]:
    """Adapt a grader that does not use the question."""
    return lambda reply, reference, question: graded(reply, reference)


_GRADES: dict[Chosen, Callable[[str, str, str | None], Grade]] = {
    "text": grade_text,
    "numeric": _ignoring_question(_numeric),
    "math": _ignoring_question(_math),
    "exact": _ignoring_question(grade_exact),
    "choice": _ignoring_question(_choice),
    "contains": _ignoring_question(grade_contains),
}

"""Graders: is a reply right, and how near is it? Every figure this tool reports rests here. Imports no torch.

A grader sees the reply, the reference answer and, where there is one, the question. `answers` alone decides which part
of the reply counts; `stated`, `letters` and `formulas` read a number, a letter or a formula out of that part.
`benchmarks/results/graders.md` shows where graders differ.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Literal, cast, get_args

from scorefast.answers import LONGEST, Grade, final_answer, last_line, remembered, unlatexed
from scorefast.data import normalized
from scorefast.formulas import equal, expression, in_words, is_formula, is_more_than_a_number
from scorefast.letters import LETTER_ALONE, chosen_letter, reference_letter
from scorefast.numbers import Number, parse_number
from scorefast.recipe import GraderName, UserError
from scorefast.sources import DEEPEST, bounded_lines, is_deep, line_text, stdin_text
from scorefast.stated import ends_on_number, final_number, number_or_why, reference_number
from scorefast.texts import grade_text, other_unit
from scorefast.thoughts import without_thoughts
from scorefast.untrusted import shortened
from scorefast.words import in_digits

Chosen = Literal["text", "numeric", "math", "exact", "choice", "contains"]  # every GraderName but auto
GRADERS: tuple[Chosen, ...] = get_args(Chosen)

SHORT = 300  # characters of a reply that `auto` may read as a text where the reference is a number
_BELOW_ONE = 1 - 1e-9  # the most a wrong answer scores
_EDGES = " .,;:!?*_`\"'()[]{}<>«»“”‘’「」『』。、…~"  # markup and punctuation around a word; no sign, %, $, #


def grade(reply: str, reference: str, grader: GraderName = "auto", question: str | None = None) -> Grade:
    """Grade one reply against its reference answer.

    numeric: the one number the reply commits to equals the reference's, as exact fractions (3/4 = 0.75 = 75 %, units
      ignored, no tolerance; a percentage also equals the bare number of per cent). Score 1 / (1 + |a - r| / |r|).
    math: equal as mathematics, by math-verify, in a process of its own with a time limit; a sum or product of plain
      numbers left undone (`9 + 9`) is wrong where the reference is a plain number.
    text: what the reference adds to the question is stated by the one answer the reply commits to, in whatever words of
      English or Korean its rules know (`texts`); what they do not know is `unsure`, and wrong.
    exact: the marked answer, or without one the last line or the whole reply, equals the reference (its marked answer)
      but for NFKC, case, white space, and punctuation at the edges of words.
    choice: the one letter A to E (or ① to ⑤; to J where the reference is one) the reply commits to; of `A. Wait, no,
      B.` the last.
    contains: the reference stands as a word in the marked answer or the last line, neither denied nor among others.
    auto: `auto_grader` of this one reference. For a number it also takes an equal formula, as math does, or a short
      text that states the number in words, as text does; and not the same number of another unit.

    A thought before the answer (`without_thoughts`) does not count; one that never closes leaves no answer. A sentence
    of `question` that the reply repeats is not part of its answer. Score of a wrong text: of `text` the share of the
    reference's words that are stated, where unsure, else 0; of the others the better of rapidfuzz's edit and token-sort
    ratio.
    """
    said, right = without_thoughts(reply), without_thoughts(reference)
    if said is None or right is None:
        return Grade(False, 0.0, reason=f"the thought{'' if said is None else ' of the reference'} never closes")
    chosen = auto_grader(right) if grader == "auto" else cast(Chosen, grader)
    said, right = said[-LONGEST:], right[-LONGEST:]
    if question and chosen != "choice":  # there an option is named in the question's own words
        said = without_question(said, question)
    found = _GRADES[chosen](said, right, question)
    return _with_words(found, said, right, question) if grader == "auto" and chosen == "numeric" else found


_OR = re.compile(r"\b(?:or|either)\b|또는|혹은|아니면|이나|거나", re.IGNORECASE)


def _with_words(found: Grade, reply: str, reference: str, question: str | None) -> Grade:
    """What `auto` makes of a numeric grade: other units are wrong; a formula may be equal, and a short text may state
    the number in words, as a time, or with a conversion in brackets."""
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


@remembered
def auto_grader(reference: str) -> Chosen:
    """The grader that fits a reference answer: choice for a letter A to J alone, numeric where it ends on a number,
    math for formulas, equations, sets and lists of numbers, else text."""
    reference = without_thoughts(reference) or ""
    if LETTER_ALONE.fullmatch(reference.strip()):
        return "choice"
    final = final_answer(reference).text.strip()
    if not is_more_than_a_number(final) and ends_on_number(reference):
        return "numeric"
    return "math" if is_formula(final) or re.search(r"\\[a-zA-Z]+|\$[^$]+\$", reference) else "text"


_WORDS = re.compile(r"[^\W\d_가-힣]{2,}|(?=[가-힣])[가-힣]|(?<=[가-힣])[가-힣]+")


def without_question(reply: str, question: str) -> str:
    """The reply without the question's sentences that it repeats; not those that may be an option to choose from, of
    fewer than three words (a Korean word counts twice)."""
    for sentence in re.split(r"(?<=[.!?。？])\s+|\n", question.strip()):
        if len(_WORDS.findall(sentence)) >= 3 and sentence in reply:
            reply = reply.replace(sentence, "\n")
    return reply


def unusable_reference(reference: str, grader: GraderName) -> str | None:
    """Why no reply can be right by this reference and grader, in words for the data's owner; None where one can (auto
    takes a grader that fits)."""
    if not reference.strip():
        return "correct_answer is blank"
    if (right := without_thoughts(reference)) is None:
        return "correct_answer is a thought that never closes"
    reference = right
    if grader == "numeric" and reference_number(reference[-LONGEST:]) is None:
        return "correct_answer holds no number, which grader numeric compares"
    if grader == "choice" and reference_letter(reference[-LONGEST:]) is None:
        return "correct_answer names no one letter A to J, which grader choice compares"
    return None


def grade_lines(file: str, grader: GraderName) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a JSONL file, `-` for stdin, each with `correct`, `score`, `reason` and `unsure` added.

    An object has `answer`, `reference` and, where known, `label` (true or false), `grader`, `question`. Raises
    UserError naming file and line.
    """
    try:
        if file != "-" and stat.S_ISFIFO(os.stat(file).st_mode) and not file.startswith("/dev/"):
            raise UserError(f"{file}: a pipe; give what comes through it on stdin: scorefast grade - < {file}")
        stream = stdin_text() if file == "-" else line_text(open(file, "rb"))  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    with stream:
        for number, line in enumerate(bounded_lines(stream, file), 1):
            if not line.strip():
                continue
            row = _graded_line(f"{file}: line {number}", line, grader)
            yield number, row


def _graded_line(where: str, line: str, grader: GraderName) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with answer and reference")
    if is_deep(row):
        raise UserError(f"{where}: nested deeper than {DEEPEST} levels")
    for key in ("answer", "reference", "question"):
        if isinstance(row.get(key), int | float) and not isinstance(row[key], bool):
            continue
        if not isinstance(row.get(key), str) and (key != "question" or row.get(key) is not None):
            raise UserError(f"{where}: {key!r} is missing or no text; an object has answer and reference")
    if not isinstance(row.get("label"), bool | None):
        raise UserError(f"{where}: 'label' is {shortened(repr(row['label']), 60)}; expected true or false")
    if row.get("grader") not in (None, *get_args(GraderName)):
        given, known = shortened(repr(row["grader"]), 60), ", ".join(get_args(GraderName))
        raise UserError(f"{where}: 'grader' is {given}; expected one of {known}")
    question = None if row.get("question") is None else str(row["question"])
    found = grade(str(row["answer"]), str(row["reference"]), row.get("grader") or grader, question)
    added = {"correct": found.correct, "score": round(found.score, 6), "reason": found.reason, "unsure": found.unsure}
    return row | added


# --- numeric -----------------------------------------------------------------------------------------------------


def _numeric(reply: str, reference: str) -> Grade:
    truth = reference_number(reference)
    if truth is None:
        return Grade(False, 0.0, reason="the reference is not one number")
    number = number_or_why(reply)
    return compare_numbers(number, truth) if isinstance(number, Number) else Grade(False, 0.0, reason=number)


def compare_numbers(number: Number, truth: Number) -> Grade:
    """Equal as one of their readings, or the nearness 1 / (1 + relative error); relative to 1 where the truth is 0."""
    said, right = str(number), str(truth)
    if number.value == truth.value:
        return Grade(True, 1.0, said, f"{said} = {right}")
    pairs = [(a, r) for a in number.readings() for r in truth.readings() if a == number.value or r == truth.value]
    if any(a == r for a, r in pairs):
        return Grade(True, 1.0, said, f"{said} for {right}")
    score = min(max(_nearness(a, r) for a, r in pairs), _BELOW_ONE)
    return Grade(False, score, said, f"reads {said}, not {right}")


def _nearness(a: Fraction | int, r: Fraction | int) -> float:
    """1 / (1 + |a - r| / |r|) in whole numbers, so that it is rounded once."""
    size = abs(r.numerator) * a.denominator or a.denominator * r.denominator
    return size / (size + abs(a.numerator * r.denominator - r.numerator * a.denominator))


# --- texts -------------------------------------------------------------------------------------------------------


def bare(text: str) -> str:
    """NFKC, case-folded, single spaces, every word without punctuation and markup at its edges."""
    words = (word.strip(_EDGES) for word in normalized(text).split())
    return " ".join(word for word in words if word) or normalized(text)


def similarity(text: str, reference: str) -> float:
    """In [0, 1): the better of the edit ratio and the token-sort ratio of the two normal forms."""
    from rapidfuzz import fuzz

    a, b = bare(text[-2000:]), bare(reference[-2000:])
    return min(max(fuzz.ratio(a, b), fuzz.token_sort_ratio(a, b)) / 100, _BELOW_ONE)


def _exact(reply: str, reference: str) -> Grade:
    right = _stated(reference)[-1]
    said = _stated(reply)
    asked = _is_question(reply)
    if right in said and not asked:
        return Grade(True, 1.0, right, "the same text")
    score = max(similarity(text, right) for text in said)
    return Grade(False, score, said[-1], "asked, not stated" if asked else "another text")


def _stated(text: str) -> list[str]:
    """The marked answer; without one, the whole text or its last line (which cannot both be a given answer)."""
    final = final_answer(text)
    if final.marked:
        return [bare(unlatexed(final.text))]
    return list(dict.fromkeys((bare(last_line(text)), bare(text))))


def _is_question(text: str) -> bool:
    final = final_answer(text)
    return (final.text if final.marked else last_line(text)).rstrip(" *_`\"')").endswith(("?", "？"))


_OTHERS = re.compile(r"\bor\b|\beither\b|\bmaybe\b|\bmight be\b|\bcould be\b|또는|혹은|아니면|이거나|이나\s")
_DENIAL = re.compile(
    r"\b(?:not|never|neither|nor|cannot|rather than|instead of|except|anything but|doubt|impossible|deny)\b|n't\b"
)
_NO_DENIAL = re.compile(r"\b(?:no|not a|without a?) ?doubt\b")
_DENIED_AFTER = re.compile(
    r"[^\s.,]{0,60}\s?(?:\S{1,60}\s)?(?:(?:은|는|이|가)\s)?(?:아니(?!면)|아닙|아닌|틀)"
    r"|\s(?:is|was|are|would be)\s(?:not|wrong|incorrect|false)\b|\s(?:isn't|wasn't|aren't)\b"
)
_LIST = re.compile(r"[^,/·;]+(?:[,/·;][^,/·;]+){2,}|[^\s/]+\s?/\s?[^\s/]+")  # three names, or two with a stroke
_PARTICLES = (
    "은|는|이|가|을|를|의|에|에서|에게|로|으로|와|과|도|만|까지|부터|이다|다|입니다|이에요|예요|이야|야|이며|이고|라고|이라고|라는|이라는"
    "|였다|이었다|였습니다|이었습니다|이죠|죠|인|란|이란|네요|이네요"
)


def _contains(reply: str, reference: str) -> Grade:
    final = final_answer(reply)
    said = bare(unlatexed(final.text if final.marked else last_line(reply)))
    right = bare(unlatexed(reference))
    asked, listed = _is_question(reply), _is_list(reply)
    if right and not asked and not listed and _states(said, right):
        return Grade(True, 1.0, right, "stands in the answer")
    why = "denied, or one of several" if right in said else "not in the answer"
    return Grade(
        False, similarity(said, right), said, "asked, not stated" if asked else "several candidates" if listed else why
    )


def _is_list(reply: str) -> bool:
    """Names and nothing else: `Paris, London, Berlin`, `Paris / London`."""
    final = final_answer(reply)
    text = (final.text if final.marked else last_line(reply)).strip(" .")
    return bool(_LIST.fullmatch(text)) and all(len(part.split()) <= 3 for part in re.split(r"[,/·;]", text))


def _states(said: str, right: str) -> bool:
    if right not in said or (_OTHERS.search(said) and not _OTHERS.search(right)):
        return False
    korean = f"(?:{_PARTICLES})?" if re.search(r"[가-힣]$", right) else ""
    for match in re.finditer(rf"(?<![\w]){re.escape(right)}{korean}(?!\w)", said):
        before, after = said[: match.start()], said[match.end() :]
        joined = re.search(r"(?:\band|&|및|그리고|와|과)\s?$", before[-8:]) or re.match(
            r"\W*(?:and(?! i\b)\b|그리고|&)", after
        )
        if joined or (match.group() != right and match.group()[len(right) :] in ("와", "과")):
            continue
        clause = re.split(r"(?<!anything )\bbut\b|[;:]", _NO_DENIAL.sub("", before[-60:]))[-1]
        if not _DENIAL.search(clause) and not _DENIED_AFTER.match(said, match.start() + len(right)):
            return True
    return False


# --- choice ------------------------------------------------------------------------------------------------------


def _choice(reply: str, reference: str) -> Grade:
    truth = reference_letter(reference)
    letter = chosen_letter(reply, more=truth is not None and truth > "E")
    if letter is None or truth is None:
        return Grade(False, 0.0, reason="no one letter" if letter is None else "the reference is no one letter")
    right = letter == truth
    return Grade(right, float(right), letter, f"{letter} = {truth}" if right else f"reads {letter}, not {truth}")


# --- math --------------------------------------------------------------------------------------------------------


def _math(reply: str, reference: str) -> Grade:
    answer, truth = expression(reply), expression(reference)
    if not answer or not truth:
        return Grade(False, 0.0, answer, "no formula" if truth else "the reference holds no formula")
    number, right = parse_number(answer), parse_number(truth)
    if number is None and right is not None and in_words(answer):
        number = final_number(reply)  # `\\$26 per week`
    if number is not None and right is not None:
        return compare_numbers(number, right)
    correct, why = equal(answer, truth)
    return Grade(correct, 1.0 if correct else similarity(answer, truth), answer, why)


def _ignoring_question(graded: Callable[[str, str], Grade]) -> Callable[[str, str, str | None], Grade]:
    """A grader that has no use for the question."""
    return lambda reply, reference, question: graded(reply, reference)


_GRADES: dict[Chosen, Callable[[str, str, str | None], Grade]] = {
    "text": grade_text,
    "numeric": _ignoring_question(_numeric),
    "math": _ignoring_question(_math),
    "exact": _ignoring_question(_exact),
    "choice": _ignoring_question(_choice),
    "contains": _ignoring_question(_contains),
}

"""Graders: is a reply right, and how near is it? Every figure this tool reports rests here. Imports no torch.

A grader sees the reply, the reference answer and, where there is one, the question; what counts as the reply's answer
is decided in `answers` alone. `benchmarks/results/graders.md` shows where graders differ.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, cast, get_args

from scorefast.answers import (
    LONGEST,
    RETRACTED,
    Grade,
    Number,
    ends_on_number,
    final_answer,
    final_number,
    parse_number,
    plain,
    reference_number,
    remembered,
)
from scorefast.data import normalized
from scorefast.math_worker import MathWorker
from scorefast.recipe import GraderName, UserError
from scorefast.texts import grade_text

Chosen = Literal["text", "numeric", "math", "exact", "choice", "contains"]  # every GraderName but auto
GRADERS: tuple[Chosen, ...] = get_args(Chosen)

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
    choice: the one letter A to E (or ① to ⑤) the reply commits to; of `A. Wait, no, B.` the last.
    contains: the reference stands as a word in the marked answer or the last line, neither denied nor among others.
    auto: `auto_grader` of this one reference.

    Score of a wrong text: of `text` the share of the reference's words that are stated, where unsure, else 0; of the
    others the better of rapidfuzz's edit and token-sort ratio. A sentence of `question` that the reply
    repeats is not part of its answer.
    """
    chosen = auto_grader(reference) if grader == "auto" else cast(Chosen, grader)
    reply, reference = reply[-LONGEST:], reference[-LONGEST:]
    if question and chosen != "choice":  # there an option is named in the question's own words
        reply = without_question(reply, question)
    return _GRADES[chosen](reply, reference, question)


_FORMULA = re.compile(
    r"(?!.*[A-Za-z]{3})[\dA-Za-z\s+\-*/^=()\[\]{},.|<>!]*[\^=(\[{<>*+][\dA-Za-z\s+\-*/^=()\[\]{},.|<>!]*"
)


@remembered
def auto_grader(reference: str) -> Chosen:
    """The grader that fits a reference answer: numeric where it ends on a number, choice for a letter A to E alone,
    math for LaTeX and formulas, else text."""
    if _LETTER_ALONE.fullmatch(reference.strip()):
        return "choice"
    if ends_on_number(reference):
        return "numeric"
    return "math" if re.search(r"\\[a-zA-Z]+|\$[^$]+\$", reference) or _FORMULA.fullmatch(reference) else "text"


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
    if grader == "numeric" and reference_number(reference[-LONGEST:]) is None:
        return "correct_answer holds no number, which grader numeric compares"
    if grader == "choice" and chosen_letter(reference[-LONGEST:]) is None:
        return "correct_answer names no one letter A to E, which grader choice compares"
    return None


def grade_lines(file: str, grader: GraderName) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a JSONL file, `-` for stdin, each with `correct` and `score` added.

    An object has `answer`, `reference` and, where known, `label` (true or false), `grader`, `question`. Raises
    UserError naming file and line.
    """
    try:
        stream = sys.stdin if file == "-" else open(file, encoding="utf-8-sig", errors="replace")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    with stream:
        for number, line in enumerate(stream, 1):
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
    for key in ("answer", "reference", "question"):
        if isinstance(row.get(key), int | float) and not isinstance(row[key], bool):
            continue
        if not isinstance(row.get(key), str) and (key != "question" or row.get(key) is not None):
            raise UserError(f"{where}: {key!r} is missing or no text; an object has answer and reference")
    if not isinstance(row.get("label"), bool | None):
        raise UserError(f"{where}: 'label' is {row['label']!r}; expected true or false")
    if row.get("grader") not in (None, *get_args(GraderName)):
        raise UserError(f"{where}: 'grader' is {row['grader']!r}; expected one of {', '.join(get_args(GraderName))}")
    question = None if row.get("question") is None else str(row["question"])
    found = grade(str(row["answer"]), str(row["reference"]), row.get("grader") or grader, question)
    return row | {"correct": found.correct, "score": round(found.score, 6)}


# --- numeric -----------------------------------------------------------------------------------------------------


def _numeric(reply: str, reference: str) -> Grade:
    number, truth = final_number(reply), reference_number(reference)
    if number is None or truth is None:
        return Grade(False, 0.0)
    return compare_numbers(number, truth)


def compare_numbers(number: Number, truth: Number) -> Grade:
    """Equal as one of their readings, or the nearness 1 / (1 + relative error); relative to 1 where the truth is 0."""
    if number.value == truth.value:
        return Grade(True, 1.0, str(number))
    pairs = [(a, r) for a in number.readings() for r in truth.readings() if a == number.value or r == truth.value]
    if any(a == r for a, r in pairs):
        return Grade(True, 1.0, str(number))
    return Grade(False, min(max(_nearness(a, r) for a, r in pairs), _BELOW_ONE), str(number))


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


def _last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]


def _unlatexed(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text).replace("$", "")


def _exact(reply: str, reference: str) -> Grade:
    right = _stated(reference)[-1]
    said = _stated(reply)
    if right in said and not _is_question(reply):
        return Grade(True, 1.0, right)
    return Grade(False, max(similarity(text, right) for text in said), said[-1])


def _stated(text: str) -> list[str]:
    """The marked answer; without one, the whole text or its last line (which cannot both be a given answer)."""
    final = final_answer(text)
    if final.marked:
        return [bare(_unlatexed(final.text))]
    return list(dict.fromkeys((bare(_last_line(text)), bare(text))))


def _is_question(text: str) -> bool:
    final = final_answer(text)
    return (final.text if final.marked else _last_line(text)).rstrip(" *_`\"')").endswith(("?", "？"))


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
    said = bare(_unlatexed(final.text if final.marked else _last_line(reply)))
    right = bare(_unlatexed(reference))
    if not _is_question(reply) and right and not _is_list(reply) and _states(said, right):
        return Grade(True, 1.0, right)
    return Grade(False, similarity(said, right), said)


def _is_list(reply: str) -> bool:
    """Names and nothing else: `Paris, London, Berlin`, `Paris / London`."""
    final = final_answer(reply)
    text = (final.text if final.marked else _last_line(reply)).strip(" .")
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

_CIRCLED = str.maketrans("①②③④⑤ⓐⓑⓒⓓⓔⒶⒷⒸⒹⒺ", "ABCDEABCDEABCDE")
_LETTER_ALONE = re.compile(r"[(\[]?[A-E①-⑤][)\].]?")
# A letter at the beginning of an answer: `B`, `(B)`, `**B**`, `B) Paris`, `B입니다`, `option B`.
_LEADING = re.compile(
    r"""[\s*_`$({\["']*+ (?:(?:the\s+)?(?:option|choice|letter|answer|보기)\b[\s:]*+[*_`(\["']*+)?
    (?P<letter>[A-E]) (?: [)\]}*_`"'$]* (?=$|[\s.,:;!?)\]]|[가-힣]) )""",
    re.VERBOSE | re.IGNORECASE,
)
_OPTION = re.compile(r"[*_]*\(?[A-E](?:[).:][*_]*(?:\s+\S|$)|$)")
_ARTICLE = re.compile(r"\s+(?!because|since|as|is|and|or|in|for|which|\()[a-z]", re.ASCII)
_LATER = re.compile(
    r"""\((?P<bracketed>[A-Ea-e])\)
    | \b(?i:option|choice|choose|pick|select|go\ with|letter|so|therefore|thus|hence|it(?:'s|\ is|\ should\ be))\b
      [,:]?(?:\s+(?:here\s+)?is)?
      \s+(?:it(?:'s|\ is|\ must\ be)\s+|the\ (?:\w+\ )?(?:answer|choice|option)\ is\s+)?
      [*_(\["']*(?P<cued>[A-E])(?![\w'’])
    | (?:^|[.,;:!]\s|\b(?i:think|believe|that|so|but|option|choice|answer)\s)[*_(]*(?P<right>[A-E])
      (?=[*_)]*\s+is\s+(?:(?:the|a)\s+)?(?:correct|right|best|answer|good\s+(?:choice|answer|option))\b)
    | (?P<korean>[A-E])(?=\s?(?:번|이다|입니다|이|가|를|을|라고)(?![A-Za-z]))""",
    re.VERBOSE,
)
_DENIED_LETTER = re.compile(
    r"\W*(?:(?:is|are|was)\s+(?:not|wrong|incorrect|false)|isn't|번?[은는이가]?\s?(?:아니|아닙|틀))"
)
_ANOTHER = re.compile(r"(?<![A-Za-z0-9'])([A-E])(?![A-Za-z0-9'])")
_AGAIN = re.compile(r"\W*(?:(?:no|wait|actually|rather)\b\W*)*", re.IGNORECASE)
_JOINT = re.compile(
    r"[\s)\]*_]*(?:[,/&;(]|\bor\b|\band\b|또는|혹은|아니면|이나|나|와|과)?\s*(?:or\b)?\s*(?:maybe|perhaps|also)?[\s(\[*_]*"
)


def _choice(reply: str, reference: str) -> Grade:
    letter, truth = chosen_letter(reply), chosen_letter(reference)
    right = letter is not None and letter == truth
    return Grade(right, float(right), letter or "")


def chosen_letter(reply: str) -> str | None:
    """The one letter a reply commits to; None where it commits to none or to several."""
    final = final_answer(unicodedata.normalize("NFKC", reply.translate(_CIRCLED)))
    text = _unlatexed(final.text).strip()
    if not final.marked:
        lines = [line for line in text.split("\n") if line.strip()]
        text = lines[-1].strip() if lines else ""
        if len(lines) > 1 and _OPTION.match(text) and _OPTION.match(lines[-2].strip()):
            return None  # a list of the options
    if text.endswith("?"):
        return None
    named = list(_ANOTHER.finditer(text))
    if taken := [m.end() for m in RETRACTED.finditer(text) if named and m.end() <= named[-1].start()]:
        text = _AGAIN.sub("", text[taken[-1] :], count=1)  # `A. Wait, no, B.`
    match = _LEADING.match(text)
    alone = match is not None and not text[match.end() :].strip(" .*_`)\"'!$")
    goes_on = text[match.end("letter") :].lstrip("*_") if match else ""
    if match and not alone and not final.marked and not re.match(r"[)\].:]", goes_on):
        match = None  # without a marker, a line that begins with a letter and goes on is prose
    if match and match["letter"] in "Aa" and not alone and _ARTICLE.match(goes_on):
        match = None
    if match and match["letter"].islower() and not alone and not re.match(r"\W", text[match.end("letter") :]):
        match = None
    if match and not final.marked and re.search(r"\([A-E]\)", text[match.end() :]):
        match = None  # it goes through the options
    if match and _DENIED_LETTER.match(text, match.end("letter")):
        return None
    if match:
        return None if _several(text, match["letter"].upper(), match.end("letter")) else match["letter"].upper()
    stated = [m for m in _LATER.finditer(text) if not _letter_denied(text, m)]
    stated = [m for m in stated if m["right"]] or stated
    if not stated or len({m["right"] for m in stated}) > 1:
        return None
    last = stated[-1]
    letter = (last["bracketed"] or last["cued"] or last["right"] or last["korean"]).upper()
    at = last.start() + max(last.group().upper().rfind(letter), 0)
    before = [m for m in _ANOTHER.finditer(text, 0, at) if m[1] != letter and _JOINT.fullmatch(text[m.end(1) : at])]
    return None if before or _several(text, letter, at + 1) else letter


def _letter_denied(text: str, match: re.Match[str]) -> bool:
    before, after = text[max(match.start() - 20, 0) : match.end()], text[match.end() :]
    denied = re.search(
        r"(?:\bnot|n't|neither|nor|rule out|eliminate|\bif|whether|doubt)\s+(?:\w+\s+){0,2}[(*_\w]*\W*$", before, re.I
    )
    return bool(denied or _DENIED_LETTER.match(after))


def _several(text: str, letter: str, end: int) -> bool:
    """Whether another letter is joined to this one: `B or C`, `A, B`, `B와 C`."""
    other = _ANOTHER.search(text, end)
    if re.match(r"[)\]*_]*\s*(?:번\s?)?(?:이?나|와|과|또는|혹은|아니면)\s*[(]?[A-E]", text[end:]):
        return True
    if other is None or other[1] == letter or not _JOINT.fullmatch(text, end, other.start(1)):
        return False
    joined = text[end : other.start(1)].strip(" \n()[]*_")
    return bool(joined) or not re.match(r"\.?\s\w\w", text[other.end() :])  # `(B) (C)`, not `B) A dog`


# --- math --------------------------------------------------------------------------------------------------------

_SPAN = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$(.+?)(?<!\\)\$", re.DOTALL)
_LITERAL = re.compile(r"\\[lcvd]?dots\b|\.\.\.|\d\s*_\{?\d")  # 1, 2, ..., n and 52_8: math-verify reads only a part
_UNDONE = re.compile(r"[\s\d.,+\-*/^÷(){}$]*[\d}][\s)$]*[-+*÷][\s\d.,+\-*/^÷(){}$]*[A-Za-z가-힣° ]*")  # 9 + 9 cm
_OR = re.compile(
    r"\s*(?:,\s*)?(?:\\text\s*\{\s*(?:,\s*)?(?:or|and)\s*\}|\b(?:or|and|maybe|possibly|perhaps)\b"
    r"(?:\s+(?:possibly|perhaps|maybe))?|또는|혹은|아니면|그리고)\s*"
)


def _math(reply: str, reference: str) -> Grade:
    answer, truth = _expression(reply), _expression(reference)
    if not answer or not truth:
        return Grade(False, 0.0, answer)
    number, right = parse_number(answer), parse_number(truth)
    if number is not None and right is not None:
        return compare_numbers(number, right)
    members = [parse_number(part) for part in answer.split("=")]
    if len(members) > 1 and None not in members and len({m.value for m in members if m}) > 1:
        return Grade(False, 0.0, answer)  # 20 = 18
    if parse_number(truth.split("=")[-1]) and not any(members) and _UNDONE.fullmatch(plain(answer.split("=")[-1])):
        return Grade(False, similarity(answer, truth), answer)
    same = "".join(answer.split()) == "".join(truth.split())
    if same or (not _LITERAL.search(answer + truth) and _equal(truth, answer)):
        return Grade(True, 1.0, answer)
    return Grade(False, similarity(answer, truth), answer)


def _expression(text: str) -> str:
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
    line = _last_line(text)
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
        re.search(r"(?:\bnot|n't|\bcannot)\s*(?:be\s*)?$", text[: span.start()])
        or _DENIED_LETTER.match(text, span.end())
    )


def _tidy(text: str) -> str:
    text = text.strip().strip("$").strip().rstrip(".").strip("*").strip()[:1000]
    if re.match(r"not\b", text, re.IGNORECASE):
        return ""
    text = re.sub(r"\\(?:mathrm|text|mathbf)\s*\{(\w)\}", r"\1", text).replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"(?<=\d)_\{(\d+)\}", r"_\1", text)
    return re.sub(r",\s*,", ",", _OR.sub(", ", text))


_WORKER = MathWorker()


@lru_cache(maxsize=4096)
def _equal(truth: str, answer: str) -> bool:
    return _WORKER.equal(truth, answer)


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

"""Graders `exact` and `contains`: literal comparison with the reference. Imports no torch."""

from __future__ import annotations

import re

from scorefast.files.text import normalized
from scorefast.grading.answer import Grade, final_answer, last_line, unlatexed

BELOW_ONE = 1 - 1e-9  # highest score of a wrong answer
_EDGES = " .,;:!?*_`\"'()[]{}<>«»“”‘’「」『』。、…~"  # markup and punctuation around a word, but no sign, %, $ or #


def bare(text: str) -> str:
    """Normalize with NFKC, case-folding and single spaces, and strip markup and punctuation around each word."""
    words = (word.strip(_EDGES) for word in normalized(text).split())
    return " ".join(word for word in words if word) or normalized(text)


def similarity(text: str, reference: str) -> float:
    """The better of the edit ratio and the token-sort ratio of the two normal forms, in [0, 1)."""
    from rapidfuzz import fuzz

    a, b = bare(text[-2000:]), bare(reference[-2000:])
    return min(max(fuzz.ratio(a, b), fuzz.token_sort_ratio(a, b)) / 100, BELOW_ONE)


def grade_exact(reply: str, reference: str) -> Grade:
    right = _stated(reference)[-1]
    said = _stated(reply)
    asked = _is_question(reply)
    if right in said and not asked:
        return Grade(True, 1.0, right, "the same text")
    score = max(similarity(text, right) for text in said)
    return Grade(False, score, said[-1], "asked, not stated" if asked else "another text")


def _stated(text: str) -> list[str]:
    """The marked answer; without one, the last line and the whole text."""
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
_LIST = re.compile(r"[^,/·;]+(?:[,/·;][^,/·;]+){2,}|[^\s/]+\s?/\s?[^\s/]+")  # three names, or two with a slash
_PARTICLES = (
    "은|는|이|가|을|를|의|에|에서|에게|로|으로|와|과|도|만|까지|부터|이다|다|입니다|이에요|예요|이야|야|이며|이고|라고|이라고|라는|이라는"
    "|였다|이었다|였습니다|이었습니다|이죠|죠|인|란|이란|네요|이네요"
)


def grade_contains(reply: str, reference: str) -> Grade:
    final = final_answer(reply)
    said = bare(unlatexed(final.text if final.marked else last_line(reply)))
    right = bare(unlatexed(reference))
    asked, listed = _is_question(reply), _is_list(reply)
    if right and not asked and not listed and _states(said, right):
        return Grade(True, 1.0, right, "in the answer")
    why = "denied, or one of several" if right in said else "not in the answer"
    return Grade(
        False, similarity(said, right), said, "asked, not stated" if asked else "several candidates" if listed else why
    )


def _is_list(reply: str) -> bool:
    """Whether the answer only lists names: `Paris, London, Berlin`, `Paris / London`."""
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

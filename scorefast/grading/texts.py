"""The grader of short texts and sentences, English and Korean: right, wrong, or unsure. Imports no torch.

1. The key is the words of the reference that the question does not contain (`keys`).
2. Only what a reply commits to counts (`statements`): clauses without questions, hearsay, concessions and contrasts.
3. A clause states the key if it has the key and no unknown word. Known words come from the question, the reference or a
   list of neutral words, belong to the name, or follow the key in a detail ("in 1889", "which is ...").
4. Right: one clause states the key, and no clause offers another answer.
5. Wrong: the key is denied ("not K") or one of several ("K or W", "maybe K", "K. W."); or the reply refuses, is empty
   or gives another answer.
6. A yes-no question is graded by the polarity of the reply.
7. Unsure, which counts as wrong: everything else. The score is the share of the key's words in one clause, times 0.5
   if the clause has unknown words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal

from scorefast.grading.answer import Grade, unlatexed
from scorefast.grading.keys import Key, content_of, counters, found, in_order, keys_of, script_of
from scorefast.grading.statements import (
    ALTERNATIVE,
    BOUND,
    CONCLUDES,
    NEGATION,
    REFUSAL,
    clauses,
    commitment,
    polarity,
    sentences,
)
from scorefast.grading.vocabulary import (
    ARTICLES,
    COPULAS,
    COUNTERS,
    JOINS,
    LINKS,
    NAME_PARTICLES,
    OTHER_ANSWER,
    PREPOSITIONS,
    PRONOUNS,
    REASONS,
    RELATIVES,
    UNITS,
)
from scorefast.grading.words import CLASSES, TITLES, Word, ends_as_verb, normal, words

MAX_BRACKETS = 20  # of a reply that are examined
MAX_CHARACTERS = 2_000  # only the last ones of a longer text count
_UNSURE, _UNKNOWN_WORDS = 0.99, 0.5  # factors of the score
_EDGES = " \n.*_\"'"

_RELATED = re.compile(r"(?:which|who|that) ", re.I)
_BRACKET = re.compile(r"[(\[]([^()\[\]]{1,200})[)\]]")


def _without_brackets(text: str, key: Key) -> str:
    """Drop brackets, which explain. A second candidate stays, after a comma; the key in another script replaces the
    name before it."""
    out, done = "", 0
    for match in islice(_BRACKET.finditer(text), MAX_BRACKETS):
        out, done, inside = out + text[done : match.start()], match.end(), match[1]
        said, line = words(normal(inside)), out.rstrip().rpartition("\n")[2][-80:]
        before = line.split()[-7:]
        if before and script_of(inside) not in ("", script_of(line)) and found(said, key) is not None:
            unknown = [word for word in before if not all(map(key.knows, words(normal(word))))]
            out = (out[: out.rfind(unknown[0])] if unknown else out) + f" {inside}"
        elif said and (
            _RELATED.match(inside) or ALTERNATIVE.search(inside) or _is_candidate(said, inside, before, key)
        ):
            out += f", {inside}, "
    return out + text[done:]


def _is_candidate(said: tuple[Word, ...], inside: str, before: list[str], key: Key) -> bool:
    """Whether a bracket may contain another answer: a short name in the same script that is not the key."""
    if len(said) > 4 or found(said, key) is not None or all(map(key.knows, said)):
        return False
    if re.fullmatch("[A-Z]{2,6}", inside) and inside in "".join(word[0] for word in before if word[0].isupper()):
        return False  # World Health Organization (WHO)
    if any(word.text.startswith(("date:", "time:")) for word in said):
        return key.numeric
    if re.search(r"\d", inside):
        return key.numeric and not _is_conversion(before[-1:], inside)
    return not before or script_of(before[-1]) == script_of(inside)


def _is_conversion(before: list[str], inside: str) -> bool:
    """`100°C (212°F)`, `42km (26 miles)`: the same quantity in another unit."""
    units = [
        {form for w in words(normal(text)) for form in w.forms if form in UNITS} for text in ("".join(before), inside)
    ]
    return all(units) and units[0] != units[1]


@dataclass(frozen=True, eq=False)
class Clause:
    """at: positions of the key's words, empty if any is missing. unknown: positions of unknown words."""

    text: str
    words: tuple[Word, ...]
    at: tuple[int, ...]
    unknown: tuple[int, ...]

    def shown(self, positions: Iterable[int]) -> str:
        return " ".join(self.words[i].text for i in positions)[:60].lower()


@dataclass(frozen=True)
class Verdict:
    """What one clause says about the key.

    kind "beside": it has the key and unknown words. share: the share of the key's words in it. words: the words against
    the key. tail: they follow the key.
    """

    kind: Literal["states", "denied", "another", "beside", "refused", "nothing"]
    share: float = 0.0
    words: str = ""
    tail: bool = False


def _parse_clause(text: str, key: Key) -> Clause:
    said = words(text)
    if key.korean is not None and any(word.korean for word in said) != key.korean:
        said = _behind_topic(said)
    at = found(said, key) or set()
    passing = at | counters(said)
    unknown = [i for i, word in enumerate(said) if i not in passing and not key.knows(word)]
    return Clause(text, said, tuple(sorted(at)), tuple(unknown))


def _behind_topic(said: tuple[Word, ...]) -> tuple[Word, ...]:
    """The words after the topic, for a reply in another language than the question."""
    for i, word in enumerate(said[:-1]):
        if word.text[-1] in "은는" if word.korean else word.text in ("is", "are", "was", "were", "has"):
            return said[i + 1 :]
    return said


def _judge_clause(text: str, key: Key) -> Verdict:
    clause = _parse_clause(text, key)
    share = sum(any(wanted == word for word in clause.words) for wanted in key.words) / len(key.words)
    if REFUSAL.search(text):
        return Verdict("refused")
    if not clause.at:
        offers = clause.words and not NEGATION.search(text) and _offers_another(clause, key)
        return Verdict("another" if offers else "nothing", share, clause.shown(clause.unknown))
    if bool(NEGATION.search(text)) != key.negative:
        return Verdict("denied", words=text[:60].lower())
    if (alternative := ALTERNATIVE.search(text)) and alternative.group().casefold() not in key.reference:
        return Verdict("another", words=clause.shown(clause.unknown) or text[:60].lower())
    if (bound := BOUND.search(text)) and bound.group().casefold() not in key.reference:
        return Verdict("beside", 1.0, bound.group().strip())
    if key.ordered and not in_order(clause.words, key):
        return Verdict("beside", 1.0, "in another order")
    return _judge_unknown_words(clause, key)


def _offers_another(clause: Clause, key: Key) -> bool:
    """Whether a clause without the key offers another answer."""
    said, unknown = clause.words, clause.unknown
    if not unknown:  # a number alone is another answer even if the question names it
        content = content_of(said)
        return key.numeric and bool(content) and all(word.numeric for word in content)
    repeated = sum(any(asked == word for word in said) for asked in key.asked)
    if key.asked and repeated >= len(key.asked) / 2:
        return True
    if said[0].korean and said[0].text[-1] in "은는" and unknown[0] == 0 and any(said[i].numeric for i in unknown):
        return key.numeric  # `높이는 1,947m입니다` is about something else
    if ends_as_verb(said[-1]):
        return len(unknown) == 1 and not repeated and said[-1].neutral
    if said[0].text.lower() in PRONOUNS:  # `It is Rome`, not `It has many churches`
        at = unknown[0]
        while at > 1 and (said[at - 1].text.lower() in ARTICLES | {","} or said[at - 1].name):
            at -= 1
        copula = at > 0 and said[at - 1].text.lower() in COPULAS | {"actually", "really", "also", "called"}
        return copula and (len(unknown) <= 3 or said[unknown[0]].name)
    passing = CLASSES | TITLES | COUNTERS | NAME_PARTICLES
    beyond = [word for i, word in enumerate(said) if i not in unknown and not word.among(passing)]
    return len(unknown) <= 12 and not content_of(tuple(beyond))


def _judge_unknown_words(clause: Clause, key: Key) -> Verdict:
    """The verdict on a clause that has the key, by its unknown words."""
    said, last = clause.words, clause.at[-1]
    repeated = [i for i, word in enumerate(said) if i > last and any(asked == word for asked in key.asked)]
    end = repeated[-1] if repeated else last
    inside = [i for i in clause.unknown if i < end and not _belongs_to_name(i, clause, key)]
    tail = [i for i in clause.unknown if i > end and not _closes_korean(i, clause) and not _is_title(i, clause)]
    if _paraphrases_question(inside, clause, key):
        inside = []
    odd = inside or ([] if not tail or _is_detail(end, clause, key) else tail)
    if not odd:
        return Verdict("states", 1.0)
    rival, tail_only = _is_rival(odd, end, clause, key), not inside and said[end + 1].text not in JOINS
    return Verdict("another" if rival else "beside", 0.0 if rival else 1.0, clause.shown(odd[:3]), tail_only)


def _is_rival(odd: list[int], end: int, clause: Clause, key: Key) -> bool:
    """Whether unknown words are a second answer.

    They are if they are a name or a number like the key, are listed with the key, or if the clause repeats nothing of
    the question.
    """
    said = clause.words
    if key.asked and not any(asked == word for word in said for asked in key.asked):
        return True
    if any((key.numeric and said[i].numeric) or (key.named and said[i].name) for i in odd):
        return True
    if odd[0] > end:
        return said[end + 1].text in JOINS and (said[end + 1].text != "," or not key.knows(said[end + 2]))
    low, high = sorted((odd[-1], clause.at[0]))
    return any(word.text in JOINS for word in said[low:high])


_NATIONALITY = re.compile("(?:ish|an|ese|ch|ic)$")


def _is_title(i: int, clause: Clause) -> bool:
    """President Washington, 이순신 장군."""
    return clause.words[i].among(TITLES) and (i - 1 in clause.at or i + 1 in clause.at)


def _belongs_to_name(i: int, clause: Clause, key: Key) -> bool:
    """Whether an unknown word is part of the key's name, or names the class of the key."""
    said, word, first, last = clause.words, clause.words[i], clause.at[0], clause.at[-1]
    if _is_title(i, clause):
        return True
    if word.among(CLASSES):  # the city of Paris; Homer is the author of ...
        between = said[i + 1 : first] if i < first else said[last + 1 : i]
        return all(w.text in ARTICLES | {"of", "is", "was", "called", "named"} or w.among(CLASSES) for w in between)
    if word.name and _NATIONALITY.search(word.text) and said[i + 1].among(CLASSES):  # the Scottish scientist
        return True
    if i > first or not key.person or len(key.words) > 1:
        return False
    if word.korean:  # 태조 이성계
        return i == first - 1 and not re.search("[은는이가의도와과로를을나자]$", word.text)
    return key.named and all(w.name or w.text in NAME_PARTICLES for w in said[i:first])  # Ludwig van Beethoven


def _paraphrases_question(inside: list[int], clause: Clause, key: Key) -> bool:
    """Whether unknown words paraphrase the question: `The first person to walk on the moon was ...`, `It was
    composed by ...`, `Brazil hosted the Games in 2016`, `대한민국의 항구 도시`."""
    said, first, last = clause.words, clause.at[0], clause.at[-1]
    if len(inside) == 1 and inside[0] > last:
        i = inside[0]
        if said[i].korean:
            return i == last + 1 and said[last].text.endswith("의")
        repeats = any(asked == word for word in said[last + 1 : i] for asked in key.asked)
        return repeats and (said[i].text.islower() or said[i - 1].text == "the")
    link = first - 1
    while link >= 0 and said[link].text in ARTICLES:
        link -= 1
    if link < 0 or said[link].text not in LINKS or any(word.text == "," for word in said[:first]):
        return False
    repeats = any(asked == word for word in said[:first] for asked in key.asked) or said[0].text.lower() in PRONOUNS
    plain = all(i < first and said[i].text.islower() and said[i].text.isascii() for i in inside)
    return repeats and plain and len(inside) <= (2 if key.named else 1)


def _closes_korean(i: int, clause: Clause) -> bool:
    """Whether a word is the verb after the key, `겨울잠을 잡니다`, or the class of a place, `제주도에 있는 산으로`."""
    said, last = clause.words, clause.at[-1]
    if not said[i].korean or not all(word.neutral for word in said[i + 1 :]):
        return False
    if said[i].among(CLASSES):  # 에베레스트 산
        return said[i - 1].text in ("있는", "위치한") or (i == last + 1 and said[last].text[-1] not in "은는이가을를의")
    return said[i - 1].text[-1] in "을를에로서" and any(form[-1] == "~" for form in said[i].forms)


_OBJECTS = ("it", "him", "her", "them", "this")
_APPOSITION = re.compile(r"(?:a|an|the) (?:[a-z]+ ){1,4}(?:of|who|which|that|from|in|near|by)\b")  # a friend of Emerson
_WITH = re.compile(r"with (?:an?|the|its|his|her|their|about|over|around|nearly|some|\d)\b", re.I)


def _is_detail(end: int, clause: Clause, key: Key) -> bool:
    """Whether the words after the key are details: every part between commas starts like a detail."""
    before = clause.words[: end + 1]
    is_sentence = before[0].text.lower() in PRONOUNS or any(asked == word for word in before for asked in key.asked)
    parts: list[list[Word]] = [[]]
    for word in clause.words[end + 1 :]:
        if word.text == ",":
            parts.append([])
        else:
            parts[-1].append(word)
    return all(all(map(key.knows, part)) or _is_addition(part, is_sentence, key) for part in parts)


def _is_addition(part: list[Word], is_sentence: bool, key: Key) -> bool:
    """is_sentence: the clause is a sentence about the question, not the key alone."""
    if len(part) > 1 and part[0].text in _OBJECTS:  # composed it in 1801
        part = part[1:]
    if len(part) > 2 and part[0].numeric:  # 4 years after
        part = part[2:]
    begins = part[0].text if part[0].text.isupper() else part[0].text.lower()
    text = " ".join(word.text for word in part)
    if any(word.text in OTHER_ANSWER for word in part):
        return False
    if begins in REASONS:
        then = next((word for word in part[1:] if word.text not in ARTICLES), part[0])
        return key.knows(then)
    if begins in RELATIVES:  # `which is shorter than the Severn`, not `which is Lyon`
        said = [word for word in part[2:] if word.text not in ARTICLES | NAME_PARTICLES]
        return part[1:] != [] and (part[1].text not in COPULAS or any(map(key.knows, said)))
    if begins in PREPOSITIONS:
        return is_sentence or any(word.numeric for word in part)
    return _WITH.match(text) is not None or (key.named and _APPOSITION.match(text) is not None)


def grade_text(reply: str, reference: str, question: str | None = None) -> Grade:
    """Right, wrong or unsure, with the reason. Takes the best grade over the readings of the reference."""
    keys = keys_of(reference[-MAX_CHARACTERS:], (question or "")[-MAX_CHARACTERS:])
    if not keys[0].words:  # only signs
        same = reply.strip() == reference.strip()
        return Grade(same, float(same), reply.strip()[:60], "the same signs" if same else "other signs")
    if not re.search(r"\w", reply):
        return Grade(False, 0.0, reason="empty")
    text = commitment(reply, judging=keys[0].yes is not None)[-MAX_CHARACTERS:]
    text = re.sub(r"[^\S\n]+", " ", unlatexed(text) if "\\" in text else text)
    if text.strip(_EDGES).casefold() == reference.strip(_EDGES).casefold():
        return Grade(True, 1.0, keys[0].text, "equals the reference")
    return max((_grade_by_key(text, key) for key in keys), key=lambda grade: (grade.correct, grade.unsure, grade.score))


def other_unit(reply: str, reference: str) -> str:
    """The differing unit that a reply gives the reference's number; "" if the units agree or one is missing."""
    if not _UNIT_BEHIND.search(reference):
        return ""
    own, said = _units(reference[-MAX_CHARACTERS:]), _units(commitment(reply, judging=False)[-MAX_CHARACTERS:])
    others = [
        said[number] - units for number, units in own.items() if units and units.isdisjoint(said.get(number, units))
    ]
    return min(others[0]) if others else ""


_UNIT_BEHIND = re.compile(r"\d\s?[A-Za-z가-힣°]")


def _units(text: str) -> dict[str, set[str]]:
    """The known units after each number of a text."""
    found: dict[str, set[str]] = {}
    for number, unit in pairwise(words(normal(text))):
        if number.numeric:
            found.setdefault(number.text, set()).update(form for form in unit.forms if form in UNITS)
    return {number: units for number, units in found.items() if units}


def _grade_by_key(text: str, key: Key) -> Grade:
    said = sentences(normal(_without_brackets(text, key)))
    if not said:
        return Grade(False, 0.0, reason="states nothing")
    if key.yes is not None:
        return _yes_or_no(said, key)
    return _combine([_judge_clause(clause, key) for sentence in said for clause in clauses(sentence)], key)


def _combine(verdicts: list[Verdict], key: Key) -> Grade:
    """Combine the verdicts of all clauses into one grade."""
    first: dict[str, Verdict] = {}
    for verdict in verdicts:
        more = verdict.tail and "states" in first  # more about the stated key
        if not more:
            first.setdefault(verdict.kind, verdict)
    if denied := first.get("denied"):
        return Grade(False, 0.0, key.text, f'denied: "{denied.words}"')
    if another := first.get("another"):
        return Grade(False, 0.0, another.words, f'another candidate: "{another.words}"')
    if "refused" in first:
        return Grade(False, 0.0, reason="refuses")
    beside = first.get("beside")
    if "states" in first and not beside:
        return Grade(True, 1.0, key.text, f'states "{key.text}"')
    score = _UNSURE * max((v.share * (_UNKNOWN_WORDS if v.words else 1) for v in verdicts), default=0.0)
    if beside:
        return Grade(False, score, key.text, f'unknown words beside it: "{beside.words}"', unsure=True)
    return Grade(False, score, reason=f'does not state "{key.text}"', unsure=True)


def _yes_or_no(said: list[str], key: Key) -> Grade:
    if any(ALTERNATIVE.search(text) or re.search(r"\byes and no\b", text, re.I) for text in said):
        return Grade(False, 0.0, reason="yes or no")
    answers = {answer for text in said if (answer := _answer(text, key)) is not None}
    if len(answers) > 1:
        return Grade(False, 0.0, reason="yes and no")
    if not answers:
        return Grade(False, 0.0, reason=f"does not say {'yes' if key.yes else 'no'}", unsure=True)
    says = "yes" if True in answers else "no"
    right = key.yes in answers
    return Grade(right, float(right), says, f"says {says}")


def _contradicts(said: tuple[Word, ...], text: str, key: Key) -> bool:
    """Whether a yes is followed by the question's own words with the opposite negation: `Yes, a whale is not a mammal`.

    What follows a no may be the correction.
    """
    repeated = sum(any(asked == word for word in said) for asked in key.asked)
    if not key.asked or repeated < 0.6 * len(key.asked):
        return False
    denied = bool(NEGATION.search(re.sub(r"^\W*\w+\W*", "", text)))
    asked_denied = bool(NEGATION.search(" ".join(word.text for word in key.asked)))
    return denied != asked_denied


def _answer(text: str, key: Key) -> bool | None:
    """Whether a sentence answers the question with yes or no; None if with neither."""
    text = re.split(r"(?<=아니라)|(?<=아니고)|,? but ", text)[0]  # without the alternative it gives
    said = words(text)
    content = [word for word in content_of(said) if polarity(word.text) is None]
    answer = polarity(text)
    if answer and _contradicts(said, text, key):
        return None
    if answer is not None:  # not `No, there might be an error above`
        about = len(content) <= 1 or any(word.among(key.known) for word in content) or CONCLUDES.search(text)
        return answer if about else None
    repeated = [i for i, word in enumerate(said) if any(asked == word for asked in key.asked)]
    missing = [asked for asked in key.asked if asked not in said]
    if not repeated or len(missing) > 0.4 * len(key.asked) or any(word.name for word in missing):
        return None
    after = said[repeated[-1] + 1 :]
    if any(not key.knows(word) for word in said[: repeated[-1]]) or not (
        all(map(key.knows, after)) or after[0].text in PREPOSITIONS | REASONS | RELATIVES | {","}
    ):
        return None
    return bool(NEGATION.search(text)) == bool(NEGATION.search(" ".join(word.text for word in key.asked)))

"""The key of a reference answer, which a reply must state, and its search in a clause. Imports no torch.

The key consists of the words that the reference adds to the question. It is the whole reference if that adds nothing,
or if the question offers options ("A or B?"). A clause has the key if it contains all of its words in any order. A
person's surname, an acronym or its expansion, and the same letters with other spacing also match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from scorefast.grading.statements import ASKS_WHAT, NEGATION, asks_whether, clauses, polarity
from scorefast.grading.vocabulary import ARTICLES, COUNTERS, JOINS, NAME_PARTICLES, PLACES
from scorefast.grading.words import TITLES, Word, normal, words

_PERSON = re.compile(
    r"\bwho(?:m|se)?\b|누구|누가|(?:사람|왕|장군|과학자|대통령|화가|작가|작곡가|인물|시인|소설가)[은는]"
    r"|\b(?:which|what)\b[^?]{0,40}\b(?:president|king|queen|author|writer|composer|painter|artist|scientist|inventor|person"
    r"|man|woman|astronaut|general|minister|poet|philosopher|explorer|director|physicist)\b",
    re.I,
)
_OPTIONS = re.compile(
    r"([\w'-]{1,40}) or (?:the |a |an )?([\w'-]{1,40})|([가-힣\w]{1,20}),? (?:또는|혹은|아니면) ([가-힣\w]{1,20})"
    r"|([가-힣\w]{1,20}?)(?:과|와|,) ([가-힣\w]{1,20}) 중"
)

MAX_READINGS = 4  # brackets of a reference that are searched for alternative names


@dataclass(frozen=True, eq=False)
class Key:
    """What a reply must state.

    text: the key. reference: the reference in normal form. words, all: the words of the key and of the reference.
    asked: the question's content words. known, weak: their forms and those of the reference. person: the question asks
    for a person. options: it offers options. ordered: the words of the key mean something else in another order, as in
    a sentence. negative: the reference is negated. yes: the expected polarity of a yes-no question, else None. korean:
    whether the question is in Korean; None without a question.
    """

    text: str
    reference: str
    words: tuple[Word, ...]
    all: tuple[Word, ...]
    asked: tuple[Word, ...]
    known: frozenset[str]
    weak: frozenset[str]
    person: bool
    options: bool
    ordered: bool
    negative: bool
    yes: bool | None
    korean: bool | None

    def knows(self, word: Word) -> bool:
        if word.neutral or word.mark or word.text in NAME_PARTICLES:
            return True
        return word.among(self.known) or not (word.forms | word.weak).isdisjoint(self.weak)

    @cached_property
    def named(self) -> bool:
        return all(word.name for word in self.words)

    @cached_property
    def numeric(self) -> bool:
        return any(word.numeric for word in self.words)

    @cached_property
    def initials(self) -> str:
        return "".join(word.text[0] for word in self.all if word.name and word.text not in ("The", "Of"))


@lru_cache(maxsize=16_384)
def keys_of(reference: str, question: str) -> tuple[Key, ...]:
    """The keys of all readings of a reference.

    The readings are the reference without its brackets, a bracket with an acronym or a name in another script, and both
    parts of `A or B`.
    """
    plain = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", reference)
    readings = [plain if re.search(r"\w", plain) else reference]
    for inside in re.findall(r"\(([^()]+)\)", reference)[:MAX_READINGS]:
        if re.fullmatch("[A-Z]{2,6}", inside) or script_of(inside) not in ("", script_of(plain)):
            readings.append(inside)
    if len(reference.split()) <= 6:
        readings += [part for part in re.split(r" or |또는|혹은", readings[0]) if part != readings[0]]
    first, *others = (_key(reading, question) for reading in readings)
    return first, *(key for key in others if key.words)


def _is_ordered(key: list[Word], everything: tuple[Word, ...]) -> bool:
    """True for `The earth goes around the sun`; False for `red, yellow and blue` and `George Washington`."""
    at = [everything.index(word) for word in key]
    if len(at) < 2 or at != sorted(at):
        return False
    between = [word for i, word in enumerate(everything[at[0] : at[-1]], at[0]) if i not in at]
    return any(
        not word.mark and word.text.lower() not in ARTICLES | JOINS and not (word.name or word.korean)
        for word in between
    )


def in_order(said: tuple[Word, ...], key: Key) -> bool:
    """Whether a clause has the key's words in the order of the reference."""
    rest = iter(said)
    return all(any(wanted == word for word in rest) for wanted in key.words)


def script_of(text: str) -> str:
    letter = re.search("(?P<korean>[가-힣])|(?P<chinese>[一-鿿])", text)
    return str(letter.lastgroup) if letter else "latin" if re.search("[A-Za-z]", text) else ""


def _key(reference: str, question: str) -> Key:
    said = normal(reference)
    asked, everything = words(normal(question)), words(said)
    options = {word.casefold() for offer in _OPTIONS.findall(question) for word in offer if word}
    of_question = _forms(word for word in asked if word.text.casefold() not in options)
    content = content_of(everything) or [word for word in everything if not word.mark] or list(everything)
    new = [word for word in content if not word.among(of_question[0]) and word.forms.isdisjoint(of_question[1])]
    key = content if options or not new else new
    key = [word for word in key if not word.among(TITLES)] or key  # Dr, Mount
    key = [word for word in key if not word.among(PLACES) or not any(w.name for w in key)] or key  # Vatican City
    parts = [(clause, words(clause)) for clause in clauses(said)]
    stating = [clause for clause, its_words in parts if all(word in its_words for word in key)] or [said]
    of_reference = _forms(everything)
    return Key(
        text=" ".join(word.text for word in key).lower(),
        reference=said.casefold(),
        words=tuple(word.whole() for word in key),
        all=everything,
        asked=tuple(
            word for word in asked if not word.neutral and not word.mark and not ASKS_WHAT.fullmatch(word.text)
        ),
        known=of_question[0] | of_reference[0],
        weak=of_question[1] | of_reference[1],
        person=bool(_PERSON.search(question)),
        options=bool(options),
        ordered=_is_ordered(key, everything),
        negative=bool(NEGATION.search(stating[0])),
        yes=_expected_polarity(said.strip(), question, bool(new)),
        korean=bool(re.search("[가-힣]", question)) if question else None,
    )


def _expected_polarity(reference: str, question: str, adds_words: bool) -> bool | None:
    """adds_words: the reference contains words beyond the question."""
    stated, whether = polarity(reference), asks_whether(question)
    if stated is not None and (whether or not adds_words or len(reference.split()) <= 2):
        return stated
    return not NEGATION.search(reference) if question and whether and not adds_words else None


def content_of(said: tuple[Word, ...]) -> list[Word]:
    """The words that state something."""
    passing = counters(said)
    return [word for i, word in enumerate(said) if not word.neutral and not word.mark and i not in passing]


def counters(said: tuple[Word, ...]) -> set[int]:
    """Positions of counters such as 개, 명 and 마리 after a number."""
    return {i for i in range(1, len(said)) if said[i - 1].text[-1].isdigit() and said[i].among(COUNTERS)}


def _forms(found: Iterable[Word]) -> tuple[frozenset[str], frozenset[str]]:
    pairs = [(word.forms, word.weak) for word in found]
    return frozenset().union(*(forms for forms, _ in pairs)), frozenset().union(*(weak for _, weak in pairs))


def found(said: tuple[Word, ...], key: Key) -> set[int] | None:
    """Positions of the key's words; None if any is missing."""
    at: dict[int, int] = {}
    for n, wanted in enumerate(key.words):
        for i, word in enumerate(said):
            if wanted == word or wanted.sounds_like(word) or _is_compound(word, wanted, key):
                at[n] = i
    if at and key.person:
        for n, wanted in enumerate(key.words):
            if n not in at and wanted.name and (where := _initial(wanted, said, at)) is not None:
                at[n] = where
    if len(at) == len(key.words):
        return set(at.values())
    return _found_as_surname(said, key, at) or _found_as_acronym(said, key) or _found_joined(said, key)


def _is_compound(word: Word, wanted: Word, key: Key) -> bool:
    """라이트형제 for 라이트 if the question contains 형제."""
    if not (word.korean and wanted.korean) or word.text[0] != wanted.text[0]:
        return False
    return any(form.startswith(wanted.text) and form[len(wanted.text) :] in key.known for form in word.forms)


def _initial(wanted: Word, said: tuple[Word, ...], at: dict[int, int]) -> int | None:
    """Position of an initial that matches a name, or of a name that matches an initial."""
    for i, word in enumerate(said):
        short = min(wanted.text, word.text, key=len)
        if word.name and len(short) == 1 and wanted.text[0] == word.text[0] and i not in at.values():
            return i
    return None


def _ends_a_name(word: Word, key: Key) -> bool:
    """Whether no other name follows a word of the reference."""
    after = key.all[key.all.index(word) + 1 :] if word in key.all else ()
    return not after or not after[0].name


def _found_as_surname(said: tuple[Word, ...], key: Key, at: dict[int, int]) -> set[int] | None:
    """Positions of a person's surname without an unknown name before it."""
    last = len(key.words) - 1
    if not (key.person and last and last in at) or key.options or not _ends_a_name(key.words[last], key):
        return None
    if not all(word.name or word.korean or word.text in NAME_PARTICLES for word in key.words):
        return None
    first = min(at.values())
    alone = first == 0 or key.knows(said[first - 1]) or said[first - 1].among(TITLES)
    return set(at.values()) if alone else None


def _found_as_acronym(said: tuple[Word, ...], key: Key) -> set[int] | None:
    """Positions of UN for United Nations, or the reverse."""
    names = [(i, word.text) for i, word in enumerate(said) if word.name and word.text not in ("The", "Of")]
    if key.named and len(key.initials) > 1:
        return next(({i} for i, text in names if text == key.initials), None)
    if len(key.words) == 1 and re.fullmatch("[A-Z]{2,6}", acronym := key.words[0].text):
        for j in range(len(names) - len(acronym) + 1):
            run = names[j : j + len(acronym)]
            if "".join(text[0] for _, text in run) == acronym:
                return {i for i, _ in run}
    return None


def _found_joined(said: tuple[Word, ...], key: Key) -> set[int] | None:
    """Positions of the same words with other spacing: 중앙처리장치, ice-cream."""
    start, last = "".join(word.text.lower() for word in key.words[:-1]), key.words[-1]
    goal = {start + form for form in last.forms | last.weak} | {"".join(word.text.lower() for word in key.all)}
    for i in range(len(said)):
        joined = ""
        for j in range(i, min(i + 5, len(said))):
            if any(joined + form in goal for form in said[j].forms | said[j].weak):
                return set(range(i, j + 1))
            joined += said[j].text.lower()
    return None

"""The grader of short texts and sentences: right, wrong, or what rules cannot tell. Imports no torch.

1. Key: the words of the reference that the question does not say already; all of them where it says all, or offers them.
2. Commitment: what follows the last marker or retraction. Of it, sentences count that are no question, courtesy or
   hearsay; of a sentence, its clauses without concessions ("Although K, ...", "Some say K, but ...") and contrasts
   ("not K", "instead of K", "K가 아니라").
3. A clause states the key if it has all words of it and every other content word is the question's, the reference's, or
   neutral; or stands behind the key and begins as a detail does ("in 1889", "which is ..."); or belongs to the name.
4. Right: one clause states the key, and no other offers another answer.
5. Wrong: denied ("not K"), one of several ("K or W", "maybe K", "K. W."), refused, empty, another answer to the question.
6. Yes and no, in questions that ask for it: the polarity has to be the reference's.
7. Unsure, which counts as wrong: everything else. Its score is the share of the key that one clause states, times 0.7
   where unknown words stand beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from scorefast.answers import RETRACTED, Grade, final_answer
from scorefast.words import CLASSES, COUNTERS, GEOGRAPHIC, TITLES, UNITS, Word, ends_as_verb, normal, words

LOOKED_AT = 2_000  # of a longer reply only so many last characters count
_UNSURE = 0.99  # the most an unsure reply scores
_BESIDE = 0.7

# --- cues --------------------------------------------------------------------------------------------------------

_NEGATION = re.compile(
    r"(?<!no )(?<!without )(?<!without a )\b(?:not|never|neither|nor|cannot|none|no longer|anything but|far from|hardly|doubt|wrong|incorrect|false|mistaken|untrue)\b"
    r"|n't\b|(?<![가-힣])(?:아니(?!면|요|오)|아닌|아닙|아녜)|않|못합|못하|못한|없(?!이)|틀렸|틀린|틀립",
    re.I,
)
_ALTERNATIVE = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|might|may be|could(?: also)? be|unless|whether|if it is not|versus|vs)\b"
    r"|[^\s/]/[^\s/]| / |또는|혹은|아니면|이거나|거나|[가-힣](?:이나|나) (?=[가-힣])|일\s?수도|인지도|둘 중|도 (?:가능|맞|정답|될|있)",
    re.I,
)
_BOUND = re.compile(
    r"\b(?:more|less|fewer|greater|larger|smaller|other|higher|lower) than|\bat (?:least|most)\b|\b(?:over|under|up to|below|above|almost|nearly"
    r"|half|twice) (?=-?\d)|[<>≤≥]|(?<=\d)[가-힣]{0,3} ?(?:이상|이하|미만|초과)|(?:최소|최대|적어도|많아야) ?(?=\d)",
    re.I,
)
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to|not able to|don't|do not|not sure|won't)\b\s*(?:\w+\s+){0,3}?"
    r"(?:answer|provide|know|help|determine|say|tell|sure|find|assist)\b|\bno idea\b|\bnot (?:sure|certain)\b"
    r"|알 수 없|모르겠|모릅니다|(?:답|답변|대답)(?:을|해)? ?(?:할|드릴|해 드릴|하기) ?(?:수 없|어렵)|확실하지 않",
    re.I,
)
_COURTESY = re.compile(
    r"\W*(?:(?:great|good|excellent|interesting) question|of course\b|certainly[!.]|sure[!.,]?$|let me (?:know|check|re|think|correct)"
    r"|i hope|feel free|you(?:'re| are) (?:absolutely |quite )?(?:right|correct)|i apologi[sz]e|(?:i'm |i am )?sorry[^,]*$|apologies|thank"
    r"|my (?:previous|first|earlier|initial)\b.*\b(?:wrong|incorrect|mistake|mistaken|error|not)\b|if you have|here(?:'s| is) (?:the|my)"
    r"|좋은 질문|질문(?:해|에|을)|더 궁금|궁금한|제 (?:이전|처음|앞선) .*(?:틀렸|잘못|오류)|감사|죄송|도움이|언제든|다시 (?:확인|생각|검토))",
    re.I,
)
# What others say, or the speaker did: it commits to nothing.
_HEARSAY = re.compile(
    r"\b(?:some|many|most|few|other)\b[^,.]{0,25}\b(?:say|says|think|thinks|thought|believe|believed|assume|claim|answer|guess|confuse)\b"
    r"|\b(?:others|people|they) (?:say|think|believe|assume|claim|would say|often|usually)\b|\bused to\b|\b(?:formerly|previously|originally)\b"
    r"|\b(?:commonly|often|sometimes|frequently|wrongly|mistakenly|usually) (?:confused|mistaken|assumed|thought|believed|given|named|guessed|said)\b"
    r"|\bI (?:first |initially |had |once |previously |at first )?(?:thought|said|answered|guessed|wrote|believed|assumed)\b"
    r"|\b(?:you|one) (?:might|may|would|could) (?:think|say|guess|expect)\b|\b(?:common|popular) (?:mistake|misconception|belief|answer)\b"
    r"|\b(?:my|your|the) (?:previous|first|earlier|initial) (?:answer|guess|reply)\b(?!.*(?<!in)correct)|\bis (?:close|near|tempting)\b"
    r"|(?:이?라고|다고|으로|로) (?:흔히 |종종 |자주 )?(?:오해|착각|혼동|생각했|알았|답했|말했|생각하기 쉽|생각하는 (?:사람|분)|아는 사람|여겼)"
    r"|(?:처음|이전|예전|전|과거)에는|(?:흔히|종종) .*(?:라고|다고)|(?:어떤|많은|일부|몇몇) (?:사람|이|분|학자)들?[은이]",
    re.I,
)
_SUBORDINATE = re.compile(
    r"(?:although|though|even though|while|whereas|unlike|despite|contrary to|instead of|rather than|apart from|besides|(?-i:which|who|where) )\b",
    re.I,
)
_LEADING = re.compile(
    r"(?:in|on|at|after|before|during|since|when|because|by|from|for|as|with|under|until|through|according to|botanically|technically"
    r"|historically|geographically|scientifically|biologically|politically)\b",
    re.I,
)
_CONTRAST = [
    re.compile(r"\bnot (?:only |just )?[^,.;]{1,60}?,? but (?:rather |actually |instead )?(?:also )?", re.I),
    re.compile(r"(?:,\s*|\b(?:and|but) )not (?!only)[^,.;]{1,60}(?:,|(?=\.|$))", re.I),
    re.compile(r",? ?\b(?:instead of|rather than|unlike|as opposed to) [^,.;]{1,60}(?:,|(?=\.|$))", re.I),
    re.compile(r"^.*?(?:이|가|은|는)? ?(?:아니라|아니고|아닌|말고|대신(?:에)?),? "),
]
_KOREAN_CONCESSION = re.compile(r"(?:지만|으나|는데|은데|ㄴ데|인데|더라도|해도),?\s+")
_CLAUSE = re.compile(
    r":\s|\s-+\s|;|(?<=[가-힣][며고]),?\s|(?<=[으]로),\s|,\s(?:and |so |then |but )?(?=(?:it|they|he|she|this|that|these|I|we)(?:'s|\s(?:is|are|was|were|would be|has|have"
    r"|say|mean|think|now|actually))\b)",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[\w)%'])\s*[.!。！]+(?=\s|$)|[.!。！…]{2,}|\n")
_QUESTION = re.compile(r"[^.!?。！？\n]*[?？]")
_BULLET = re.compile(r"(?m)^[ \t]*(?:[*•-]|\d{1,2}[.)])[ \t]+\**([^\n:*–—(-]{1,60}(?:-[^\n:*–—(-]{1,40})?)")
_BRACKET = re.compile(r"((?:[\w'.°%$-]+ ){0,6}[\w'.°%$-]+)?( ?)[(\[]([^()\[\]]{1,200})[)\]]")
_JUDGED = re.compile(
    r"\W*(?:(?:in|partially |partly |not )?correct|wrong|right|false|true|not|in fact|mistaken|as follows|here|below|unclear)\b",
    re.I,
)

# With these a detail begins that may say more than question and reference.
_DETAIL = frozenset(
    "in on at by from of for since because where which who whose when during near until within around after before under "
    "making reaching covering located lasting high just while that due thanks with".split()
)
_AFTER_WITH = frozenset("a an the its his her their about over around nearly approximately some".split())
_LINK = frozenset("is was are were by in on at called of named as be from".split())
_APPOSITION = re.compile(
    r"(?:a|an|the) (?:[a-z]+ ){1,4}(?:of|who|which|that|from|in|near|by)\b"
)  # `, a friend of Emerson`
_KIND_OF = frozenset("of is was the a an called named".split())  # between a kind of thing and its name
_ARTICLE = frozenset("the a an".split())
_NAME_PARTICLE = frozenset("van von de da di la le del der den al bin".split())
_PERSON = re.compile(
    r"\bwho\b|\bwhom\b|\bwhose\b|누구|누가|\b(?:which|what)\b[^?]{0,40}\b(?:president|king|queen|author|writer|composer|painter|artist|"
    r"scientist|inventor|person|man|woman|astronaut|general|minister|poet|philosopher|explorer|director|physicist)\b"
    r"|(?:사람|왕|장군|과학자|대통령|화가|작가|작곡가|인물|시인|소설가)[은는]",
    re.I,
)
_OPTIONS = re.compile(
    r"([\w'-]+) or (?:the |a |an )?([\w'-]+)|([가-힣\w]+?)(?:,)? (?:또는|혹은|아니면) ([가-힣\w]+)|([\w가-힣]+?)(?:과|와|,) ([\w가-힣]+) 중"
)

_YES = re.compile(
    r"\W*(?:yes|yep|yeah|true|correct|that's right|that is right|네(?![가-힣])|예(?![가-힣])|맞(?:습니다|아요|다)|그렇(?:습니다|다)|그래요)\b",
    re.I,
)
_NO = re.compile(
    r"\W*(?:no(?! one\b| longer\b|\. ?\d)\b|nope\b|false\b|incorrect\b|not true\b|아니요|아니오|아뇨|아니다|아닙니다|아니에요|그렇지 않|틀렸|틀립)",
    re.I,
)
_ENDS_YES = re.compile(r"\b(?:so|hence|thus|answer is),? (?:the answer is )?(yes|no|true|false)\W*$", re.I)
_WH = re.compile(
    r"\b(?:what|which|who|whom|whose|when|where|why|how|name|list)\b|무엇|무슨|어디|누구|누가|언제|몇|왜|어떻게|어떤|어느|며칠|뭐|뭘",
    re.I,
)
_ASKS_POLARITY = re.compile(
    r"(?:^|[.!?,:]\s)(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|true or false)\b"
    r"|(?:나요|까요?|니까|가요|죠|니|인가|는가|은가|ㄴ가)\s*[?？]?\s*$",
    re.I,
)
_REQUEST = re.compile(r"\b(?:can|could|would|will) you\b|do you know|알려|말해|\bor\b(?! false)|아니면", re.I)


# --- the key of a reference --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Key:
    """What a reply to one question has to state. words: rule 1. all: the reference's. known: forms that question and
    reference have. frame: the question's content words. yes: the polarity, where the question asks for it."""

    text: str
    words: tuple[Word, ...]
    all: tuple[Word, ...]
    known: frozenset[str]
    weakly: frozenset[str]
    frame: tuple[Word, ...]
    person: bool
    options: bool
    negative: bool
    yes: bool | None
    korean_question: bool | None

    def knows(self, word: Word) -> bool:
        if word.neutral or word.text in ",&" or word.among(self.known) or not word.forms.isdisjoint(self.weakly):
            return True
        return (word.name or word.korean) and word.among(TITLES)

    @cached_property
    def named(self) -> bool:
        return all(w.name for w in self.words)

    @cached_property
    def joined(self) -> str:
        return "".join(w.text.lower() for w in self.words[:-1])

    @cached_property
    def initials(self) -> str:
        return "".join(w.text[0] for w in self.all if w.name and w.text not in ("The", "Of"))


@lru_cache(maxsize=16_384)
def keys_of(reference: str, question: str) -> tuple[Key, ...]:
    """The reference, without what stands in brackets; each bracket for itself; `A or B`: also A, and B."""
    readings = [re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", reference), *re.findall(r"\(([^()]+)\)", reference)]
    readings = [r for r in readings if re.search(r"\w", r)] or [reference]
    short = len(reference.split()) <= 6
    readings += [part for part in re.split(r" or |또는|혹은", readings[0]) if short and part != readings[0]]
    return tuple(_key(reading, question) for reading in readings)


def _key(reference: str, question: str) -> Key:
    said = normal(reference)
    asked, everything = words(normal(question)), words(said)
    counted = _counters(everything)
    content = [w for i, w in enumerate(everything) if not w.neutral and w.text not in ",&/" and i not in counted]
    content = content or [w for w in everything if w.text not in ",&/"] or list(everything)
    offered = [{w.casefold() for w in m if w} for m in _OPTIONS.findall(question)]
    options = {w for pair in offered for w in pair}
    known = _forms(w for w in asked if w.text.casefold() not in options)
    new = [w for w in content if not w.among(known[0]) and w.forms.isdisjoint(known[1])]
    key = (content if options or not new else new) if question else content
    key = [w for w in key if w.forms.isdisjoint(TITLES)] or key
    key = [w for w in key if w.forms.isdisjoint(GEOGRAPHIC) or not any(k.name for k in key)] or key
    held = [c for c in clauses(said) if all(k in words(c) for k in key)] or [said]
    of_reference = _forms(everything)
    return Key(
        text=" ".join(w.text for w in key),
        words=tuple(_whole(w) for w in key),
        all=everything,
        known=known[0] | of_reference[0],
        weakly=known[1] | of_reference[1],
        frame=tuple(w for w in asked if not w.neutral and w.text not in ",&/" and not _WH.fullmatch(w.text)),
        person=bool(_PERSON.search(question)),
        options=bool(options),
        negative=bool(_NEGATION.search(held[0])),
        yes=_wanted_polarity(reference, said, question, bool(new)),
        korean_question=bool(re.search("[가-힣]", question)) if question else None,
    )


def _forms(found: object) -> tuple[frozenset[str], frozenset[str]]:
    forms: set[str] = set()
    weak: set[str] = set()
    for word in found:  # type: ignore[attr-defined]
        forms |= word.forms
        weak |= word.weak
    return frozenset(forms), frozenset(weak)


def _whole(word: Word) -> Word:
    """A date of the reference is stated by one that has all its parts."""
    return Word(word.text, frozenset({word.text})) if word.text.startswith("date:") else word


def _counters(said: tuple[Word, ...]) -> set[int]:
    """Positions of 개, 명, 마리 behind a number."""
    return {
        i
        for i in range(1, len(said))
        if said[i - 1].text[-1].isdigit() and not (said[i].forms | said[i].weak).isdisjoint(COUNTERS)
    }


def _wanted_polarity(reference: str, said: str, question: str, news: bool) -> bool | None:
    stated = _polarity(reference)
    if stated is not None and (not news or len(said.split()) <= 2 or _asks_polarity(question)):
        return stated
    return not _NEGATION.search(said) if question and not news and _asks_polarity(question) else None


def _asks_polarity(question: str) -> bool:
    return bool(not _WH.search(question) and not _REQUEST.search(question) and _ASKS_POLARITY.search(question))


def _polarity(text: str) -> bool | None:
    """Whether a text says yes or no, at its beginning or as its conclusion; None where it says neither or both."""
    if re.search(r"\byes and no\b|\byes or no\b", text, re.I):
        return None
    if ends := _ENDS_YES.search(text):
        return ends[1].lower() in ("yes", "true")
    if _YES.match(text):
        return True
    return False if _NO.match(text) else None


# --- what a reply commits to -------------------------------------------------------------------------------------


def commitment(reply: str, key: Key) -> str:
    """What follows the last marker, unless it only judges ("my answer was wrong"); else the last retraction."""
    final = final_answer(reply)
    if final.marked and final.text.strip(" *_.\n") and (key.yes is not None or not _JUDGED.match(final.text)):
        return final.text
    taken_back = list(RETRACTED.finditer(reply))
    if (
        taken_back
        and re.search(r"\w", reply[: taken_back[-1].start()])
        and re.search(r"\w\w", rest := reply[taken_back[-1].end() :])
    ):
        return rest
    return reply


def sentences(text: str) -> list[str]:
    """The sentences of a normal text that may state something."""
    found = _SENTENCE.split(_QUESTION.sub("\n", text))
    return [s for s in found if re.search(r"\w", s) and not _COURTESY.match(s)]


def clauses(sentence: str) -> list[str]:
    """The clauses of a sentence to which it commits."""
    sentence = sentence.strip()
    for contrast in _CONTRAST:
        sentence = contrast.sub(" ", sentence)
    sentence = _KOREAN_CONCESSION.split(sentence)[-1]
    sentence = re.split(r"(?<!nothing )(?<!anything )\b(?:but|however|yet)\b,?", sentence)[-1].strip()
    if "," in sentence and (lead := _SUBORDINATE.match(sentence) or _LEADING.match(sentence)):
        first, rest = sentence.split(",", 1)
        sentence = rest if _SUBORDINATE.match(lead.group()) else f"{rest.strip()}, {first}"
    parts = [part.strip() for part in _CLAUSE.split(sentence) if re.search(r"\w", part)]
    return [part for part in parts if not _HEARSAY.search(part)]


def unbracketed(text: str, key: Key) -> str:
    """The text without its brackets, which explain. Kept behind a comma: another candidate. In the place of what it
    explains: the key in another script."""

    def replaced(match: re.Match[str]) -> str:
        before, space, inside = match[1] or "", match[2], match[3]
        said = words(normal(inside))
        scripts = [_script(t) for t in (before, inside)]
        if before and scripts[0] != scripts[1] and _found(said, key) is not None:
            known = [w for w in before.split() if key.knows((words(w) or words("x"))[0])]
            return f"{' '.join(known)} {inside}"
        acronym = re.fullmatch(r"[A-Z]{2,6}", inside) and inside in "".join(re.findall(r"\b[A-Z]", before))
        dated = any(w.text.startswith(("date:", "time:")) for w in said)
        candidate = len(said) <= 4 and not acronym and (dated or not before or scripts[0] == scripts[1])
        numbers = (
            re.search(r"\d", inside)
            and not dated
            and (not any(map(_is_numeric, key.words)) or _is_conversion(before, inside))
        )
        odd = [w for w in said if not key.knows(w)]
        if said and (_ALTERNATIVE.search(inside) or (candidate and not numbers and odd and _found(said, key) is None)):
            return f"{before}, {inside}, "
        return before + space

    return _BRACKET.sub(replaced, text)


def _is_conversion(before: str, inside: str) -> bool:
    """`100°C (212°F)`, `42 km (26 miles)`: the same in other units."""
    units = [
        {f for w in words(normal(text)) for f in w.forms if f in UNITS} for text in (before.split(" ")[-1], inside)
    ]
    return all(units) and units[0] != units[1]


def _script(text: str) -> str:
    found = re.search("(?P<korean>[가-힣])|(?P<chinese>[一-鿿])", text)
    return str(found.lastgroup) if found else "latin"


# --- judging -----------------------------------------------------------------------------------------------------

Kind = Literal["states", "denied", "another", "beside", "refused", "nothing"]


@dataclass(frozen=True)
class Judged:
    """What one clause says of the key. share: of the key's words it has. words: those that speak against it."""

    kind: Kind
    share: float = 0.0
    words: str = ""
    before: bool = False  # unknown words stand before the key's last one


def grade_text(reply: str, reference: str, question: str | None = None) -> Grade:
    """Right, wrong or unsure, with the reason in a few words; the best over the readings of the reference."""
    reply = reply[-LOOKED_AT:]
    if not re.search(r"\w", reply):
        return Grade(False, 0.0, "", "empty")
    grades = [_graded(reply, key) for key in keys_of(reference[:LOOKED_AT], question or "")]
    return max(grades, key=lambda g: (g.correct, g.unsure, g.score))


def _graded(reply: str, key: Key) -> Grade:
    text = commitment(reply, key)
    bullets = _BULLET.findall(text)
    if len(bullets) > 1:
        text = ", ".join(b.strip() for b in bullets)
    if "(" in text or "[" in text:
        text = unbracketed(text, key)
    said = sentences(normal(text))
    if not said:
        return Grade(False, 0.0, text.strip(), "states nothing")
    if key.yes is not None:
        return _yes_or_no(said, key)
    return _folded([_judged(clause, key) for sentence in said for clause in clauses(sentence)], key)


def _folded(judged: list[Judged], key: Key) -> Grade:
    """One grade of all clauses."""
    by: dict[str, Judged] = {}
    for one in judged:
        if one.kind == "beside" and "states" in by and not one.before:
            continue  # more about what was stated
        by.setdefault(one.kind, one)
    if "denied" in by:
        return Grade(False, 0.0, key.text, f'denied: "{by["denied"].words}"')
    if "another" in by:
        return Grade(False, 0.0, by["another"].words, f'another candidate: "{by["another"].words}"')
    if "refused" in by:
        return Grade(False, 0.0, "", "refuses")
    if "states" in by and "beside" not in by:
        return Grade(True, 1.0, key.text, f'states "{key.text.lower()}"')
    share = _UNSURE * max((j.share * (_BESIDE if j.words else 1) for j in judged), default=0.0)
    if "beside" in by:
        return Grade(False, share, key.text, f'unknown words beside it: "{by["beside"].words}"', unsure=True)
    return Grade(False, share, "", f'does not state "{key.text.lower()}"', unsure=True)


def _judged(clause: str, key: Key) -> Judged:
    said = words(clause)
    said = _answer_part(said, key)
    hit = _found(said, key)
    counted = _counters(said)
    unknown = [
        i
        for i, w in enumerate(said)
        if i not in (hit or ()) and i not in counted and not key.knows(w) and w.text != "/"
    ]
    share = sum(any(k == w for w in said) for k in key.words) / len(key.words)
    shown = " ".join(said[i].text for i in unknown)[:60].lower()
    if hit is None:
        if _REFUSAL.search(clause):
            return Judged("refused")
        if not _NEGATION.search(clause) and (_is_answer(said, unknown, key) if unknown else _is_number(said, key)):
            return Judged("another", share, shown)
        return Judged("nothing", share, shown)
    if bool(_NEGATION.search(clause)) != key.negative:
        return Judged("denied", 0.0, clause.strip()[:60].lower())
    if _ALTERNATIVE.search(clause) and not _ALTERNATIVE.search(" ".join(w.text for w in key.all)):
        return Judged("another", 0.0, shown or clause.strip()[:60].lower())
    if (found := _BOUND.search(clause)) and not _BOUND.search(" ".join(w.text for w in key.all)):
        return Judged("beside", 1.0, found.group().strip())
    if _REFUSAL.search(clause):
        return Judged("refused")
    return _weighed(said, sorted(hit), unknown, key)


def _answer_part(said: tuple[Word, ...], key: Key) -> tuple[Word, ...]:
    """What a reply in the other language says behind its topic: there the question's words are not to be recognized."""
    if key.korean_question is None or not said or any(w.korean for w in said) == key.korean_question:
        return said
    ends = [
        i
        for i, w in enumerate(said)
        if (w.text[-1] in "은는" if w.korean else w.text in ("is", "are", "was", "were", "has"))
    ]
    return said[ends[0] + 1 :] if ends and ends[0] + 1 < len(said) else said


def _is_number(said: tuple[Word, ...], key: Key) -> bool:
    """A number or a time alone, where the key has one: another answer, even if the question names it."""
    content = [w for w in said if not w.neutral and w.text not in ",&"]
    return bool(content) and all(_is_numeric(w) for w in content) and any(map(_is_numeric, key.words))


def _is_numeric(word: Word) -> bool:
    return word.text[-1].isdigit() or word.text.startswith(("date:", "time:"))


def _is_answer(said: tuple[Word, ...], unknown: list[int], key: Key) -> bool:
    """Whether words that do not state the key offer something else for it."""
    framed = sum(any(q == w for w in said) for q in key.frame)
    if key.frame and framed >= 0.5 * len(key.frame):
        return True
    if (
        said[0].korean
        and said[0].text[-1] in "은는"
        and any(said[i].text[0].isdigit() for i in unknown[1:])
        and 0 in unknown
    ):
        return any(w.text[0].isdigit() for w in key.words)  # `높이는 1,947m입니다`: about something else
    if said[-1].korean and ends_as_verb(said[-1]):
        return len(unknown) <= 2 and framed == 0 and said[-1].neutral
    first = said[0].text.lower()
    if first in ("it", "it's", "that", "that's", "he", "she", "they", "this", "these", "which"):
        at = unknown[0]
        while at and said[at - 1].text.lower() in _ARTICLE:
            at -= 1
        copula = at and said[at - 1].text.lower() in (
            "is",
            "are",
            "was",
            "were",
            "be",
            "it's",
            "that's",
            "actually",
            "really",
            "also",
            "called",
        )
        return bool(copula) and (len(unknown) <= 3 or said[unknown[0]].name)
    passing = {*unknown, *_counters(said)}
    kinds = CLASSES | TITLES
    beyond = [
        w
        for i, w in enumerate(said)
        if i not in passing and not w.neutral and w.text not in ",&" and not w.among(kinds)
    ]
    return len(unknown) <= 12 and not beyond


def _weighed(said: tuple[Word, ...], hit: list[int], unknown: list[int], key: Key) -> Judged:
    """A clause that has the key: whether the unknown words in it speak for another answer."""
    first, last = hit[0], hit[-1]
    frame = [i for i, w in enumerate(said) if i > last and not w.neutral and w.text not in ",&" and i not in unknown]
    ends = max([last, *frame])
    tail = [i for i in unknown if i > ends and not _is_korean_close(i, said, last)]
    inside = [i for i in unknown if i < ends and not _is_excused(i, said, hit, key)]
    if len(inside) == 1 and _is_of_frame(inside[0], said, last, key):
        inside = []
    if inside and _is_verb_of_frame(inside, said, first, key):
        inside = []
    if inside and _is_another(inside, said, hit, key):
        return Judged("another", 0.0, said[inside[0]].text.lower())
    if inside:
        return Judged("beside", 1.0, said[inside[0]].text.lower(), before=True)
    if tail and said[ends + 1].text in ("and", "&", "그리고", "및", "or", "/"):
        return Judged("another", 0.0, said[tail[0]].text.lower())
    if tail and not _is_detail(said[ends + 1 :], key):
        return Judged(
            "beside", 1.0, " ".join(said[i].text for i in tail)[:60].lower(), before=said[ends + 1].text == ","
        )
    return Judged("states", 1.0)


def _is_another(inside: list[int], said: tuple[Word, ...], hit: list[int], key: Key) -> bool:
    """Whether unknown words are a second answer: listed with the key, or a number where the key has one."""
    if any(map(_is_numeric, key.words)) and any(_is_numeric(said[i]) for i in inside):
        return True
    near = min(inside[-1], hit[0]), max(inside[-1], hit[0])
    return any(w.text in (",", "and", "&", "그리고", "및") for w in said[near[0] : near[1]])


def _is_excused(i: int, said: tuple[Word, ...], hit: list[int], key: Key) -> bool:
    """An unknown word that belongs to the key's name or says what kind of thing it is."""
    word, first, last = said[i], hit[0], hit[-1]
    if word.among(CLASSES):
        between = said[i + 1 : first] if i < first else said[last + 1 : i]
        return all(w.text in _KIND_OF or w.among(CLASSES) or w.among(TITLES) for w in between)
    if first < i < last and word.name:  # John Fitzgerald Kennedy
        return any(len(k.text) == 1 and k.text == word.text[0] for k in key.words)
    if word.korean and key.person and len(key.words) == 1 and i == first - 1:  # 태조 이성계
        return not re.search("[은는이가의도와과로를을나]$", word.text)
    given_name = all(said[j].name or said[j].text in _NAME_PARTICLE for j in range(i, first))
    return key.person and len(key.words) == 1 and key.named and i < first and given_name  # Ludwig van Beethoven


def _is_verb_of_frame(inside: list[int], said: tuple[Word, ...], first: int, key: Key) -> bool:
    """`The first person to walk on the moon was Neil Armstrong`, `it was composed by Bach`: words of small letters
    before a link to the key, in a clause that repeats the question."""
    at = first - 1
    while at >= 0 and said[at].text.lower() in _ARTICLE:
        at -= 1
    if at < 0 or said[at].text not in _LINK or "," in {said[i].text for i in range(first)}:
        return False
    lower = all(i < first and said[i].text.islower() and said[i].text.isascii() for i in inside)
    repeats = any(q == w for w in said[:first] for q in key.frame)
    return lower and len(inside) <= (2 if key.named else 1) and (repeats or said[0].text in ("It", "He", "She", "They"))


def _is_korean_close(i: int, said: tuple[Word, ...], last: int) -> bool:
    """The verb that closes a Korean clause behind the key, `겨울잠을 잡니다`; what a place is, `제주도에 있는 산으로`."""
    if i == last + 1 == len(said) - 1:
        return said[last].text[-1] in "을를에로서" and ends_as_verb(said[i])
    return said[i].among(CLASSES) and said[i - 1].text in ("있는", "위치한")


def _is_of_frame(i: int, said: tuple[Word, ...], last: int, key: Key) -> bool:
    """`Brazil hosted the Games in 2016`, `대한민국의 항구 도시`: one word behind the key, for one of the question's."""
    if said[i].korean:
        return i == last + 1 and said[last].text.endswith("의")
    return i > last + 2 and said[i - 1].text == "the" and said[i - 2].among(key.known) and not said[i - 2].neutral


def _is_detail(tail: tuple[Word, ...], key: Key) -> bool:
    """Whether what follows the key adds to it: each part up to a comma begins as a detail does."""
    parts: list[list[Word]] = [[]]
    for word in tail:
        if word.text == ",":
            parts.append([])
        else:
            parts[-1].append(word)
    for part in filter(None, parts):
        begins = part[0].text if part[0].text.isupper() else part[0].text.lower()
        then = part[1].text.lower() if len(part) > 1 else ""
        if all(key.knows(w) for w in part) or (key.named and _APPOSITION.match(" ".join(w.text for w in part))):
            continue
        if begins not in _DETAIL or (begins == "with" and then not in _AFTER_WITH and not then.isdigit()):
            return False
        if any(w.text in ("now", "instead", "actually", "지금은", "현재는") for w in part):
            return False
    return True


def _found(said: tuple[Word, ...], key: Key) -> set[int] | None:
    """Positions of the key's words; None where they are not all there."""
    at: dict[int, int] = {}
    for n, k in enumerate(key.words):
        positions = [i for i, w in enumerate(said) if k == w or _sounds_alike(k, w) or _is_compound(w, k, key)]
        if not positions and k.name and key.person and len(k.text) > 1:
            positions = [i for i, w in enumerate(said) if w.name and w.text == k.text[0]]  # its initial
        if positions:
            at[n] = positions[-1]
    for n, k in enumerate(key.words):
        if n not in at and at and k.name and len(k.text) == 1:
            positions = [i for i, w in enumerate(said) if w.name and w.text[0] == k.text and i not in at.values()]
            at |= {n: positions[0]} if positions else {}
    if len(at) == len(key.words):
        return set(at.values())
    return _found_as_name(said, key, at) or _found_as_acronym(said, key) or _found_joined(said, key)


def _sounds_alike(a: Word, b: Word) -> bool:
    return bool(a.sound) and a.sound == b.sound and a.korean != b.korean and (a.name or b.name)


def _is_compound(word: Word, k: Word, key: Key) -> bool:
    """라이트형제 for 라이트, where the question asks for 형제."""
    if not (word.korean and k.korean) or word.text[0] != k.text[0]:
        return False
    return any(form.startswith(k.text) and form[len(k.text) :] in key.known for form in word.forms)


def _found_as_name(said: tuple[Word, ...], key: Key, at: dict[int, int]) -> set[int] | None:
    """A person's surname alone, or the name without initials."""
    last = len(key.words) - 1
    if not key.person or key.options or last not in at or not last or key.words[last].text != key.all[-1].text:
        return None
    if not all(w.name or w.korean or w.text in _NAME_PARTICLE for w in key.words):
        return None
    first = min(at.values())
    alone = first == 0 or key.knows(said[first - 1])
    return set(at.values()) if alone else None


def _found_as_acronym(said: tuple[Word, ...], key: Key) -> set[int] | None:
    """UN for United Nations, and the other way round."""
    names = [(i, w.text) for i, w in enumerate(said) if w.name and w.text not in ("The", "Of")]
    if key.named and len(key.initials) > 1:
        return next(({i} for i, text in names if text == key.initials), None)
    if len(key.words) == 1 and re.fullmatch("[A-Z]{2,6}", acronym := key.words[0].text):
        for j in range(len(names) - len(acronym) + 1):
            run = names[j : j + len(acronym)]
            if "".join(text[0] for _, text in run) == acronym:
                return {i for i, _ in run}
    return None


def _found_joined(said: tuple[Word, ...], key: Key) -> set[int] | None:
    """The same words spaced otherwise: 중앙처리장치, ice-cream."""
    goal = {key.joined + form for form in (*key.words[-1].forms, *key.words[-1].weak)}
    for i in range(len(said)):
        before = ""
        for j in range(i, min(i + 5, len(said))):
            if any(before + form in goal for form in (*said[j].forms, *said[j].weak)):
                return set(range(i, j + 1))
            before += said[j].text.lower()
    return None


# --- yes and no --------------------------------------------------------------------------------------------------


def _yes_or_no(said: list[str], key: Key) -> Grade:
    """By what the reply says of the question: a leading yes or no counts alone, or before words about the question."""
    wanted = "yes" if key.yes else "no"
    found: set[bool] = set()
    for sentence in said:
        answer = _polarity(sentence)
        about = [
            w
            for w in words(sentence)
            if not w.neutral and w.text not in ",&" and not re.fullmatch("yes|no|true|false", w.text, re.I)
        ]
        if answer is None and _of_frame(sentence, key):
            answer = bool(_NEGATION.search(sentence)) == bool(_NEGATION.search(" ".join(w.text for w in key.frame)))
        elif (
            answer is not None
            and len(about) > 1
            and not any(w.among(key.known) for w in about)
            and not _ENDS_YES.search(sentence)
        ):
            answer = None  # `No, there might be an error above`
        if answer is not None:
            found.add(answer)
    if any(_ALTERNATIVE.search(sentence) or re.search(r"\byes and no\b", sentence, re.I) for sentence in said):
        return Grade(False, 0.0, "", "yes or no")
    if len(found) != 1:
        return Grade(False, 0.0, "", "yes and no" if found else f"does not say {wanted}", unsure=not found)
    answer = found.pop()
    return Grade(
        answer == key.yes, float(answer == key.yes), "yes" if answer else "no", f"says {'yes' if answer else 'no'}"
    )


def _of_frame(sentence: str, key: Key) -> bool:
    """Whether a sentence repeats the question as a statement, with no other word before its last one."""
    said = [w for w in words(sentence) if w.text not in ",&"]
    same = [i for i, w in enumerate(said) if any(q == w for q in key.frame)]
    other = [i for i, w in enumerate(said) if not key.knows(w)]
    return bool(same) and len({said[i].text for i in same}) >= 0.6 * len(key.frame) and all(i > same[-1] for i in other)

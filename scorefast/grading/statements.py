"""Split a reply into the sentences and clauses that it states, in English and Korean. Imports no torch.

A reply commits to what follows its last marker, else to what follows its last retraction. Questions, courtesies ("I
hope this helps") and hearsay ("Many say K") state nothing. Concessions ("Although K, ...", "K, but ...") and contrasts
("not K", "instead of K", "K가 아니라") are removed from a sentence.
"""

from __future__ import annotations

import re

from scorefast.grading.answer import RETRACTED, final_answer


def _cues(words: str, parts: str = "") -> re.Pattern[str]:
    """One pattern of all lines: `words` match as whole words, `parts` anywhere."""
    lines = [rf"\b(?:{'|'.join(words.split(chr(10))[1:-1])})\b", *parts.split("\n")[1:-1]]
    return re.compile("|".join(lines), re.IGNORECASE)


NEGATION = _cues(
    r"""
not|never|neither|nor|cannot|none|no longer|anything but|far from|hardly
wrong|incorrect|false|untrue|mistaken
(?<!no )(?<!without )(?<!without a )doubt
""",
    r"""
n't\b
(?<![가-힣])(?:아니(?!면|요|오)|아닌|아닙|아녜|아님)
않|못합|못하|못한|없(?!이)|틀렸|틀린|틀립
""",
)
ALTERNATIVE = _cues(
    r"""
or|either|maybe|perhaps|possibly|might|may be|could(?: also)? be
unless|whether|versus|vs
""",
    r"""
[^\s/]/[^\s/]| / 
또는|혹은|아니면|이거나|거나|[가-힣](?:이나|나) (?=[가-힣])
수도 있|인지도|둘 중|도 (?:가능|맞|정답|될|있)
""",
)
BOUND = _cues(
    r"""
(?:more|less|fewer|greater|larger|smaller|higher|lower|other) than|at (?:least|most)
(?:over|under|up to|below|above|almost|nearly|half|twice) (?=-?\d)\S+
""",
    r"""
[<>≤≥]
(?<=\d)[가-힣]{0,3} ?(?:이상|이하|미만|초과)|(?:최소|최대|적어도|많아야) ?(?=\d)
""",
)
REFUSAL = _cues(
    r"""
(?:can(?:not|'t| not)|could(?:n't| not)|unable to|do(?:n't| not)|won't)\s(?:\w+\s){0,3}?(?:answer|provide|know|help)
(?:can(?:not|'t| not)|could(?:n't| not)|unable to|do(?:n't| not)|won't)\s(?:\w+\s){0,3}?(?:determine|assist|say|tell)
no idea|not (?:sure|certain)
""",
    r"""
알 수 없|모르겠|모릅니다|확실하지 않
(?:답|답변|대답)(?:을|해)? ?(?:할|드릴|해 드릴|하기) ?(?:수 없|어렵)
""",
)

_COURTESY = _cues(  # at the start of a sentence
    r"""
(?:great|good|excellent|interesting) question|of course|thanks?|i hope|feel free|if you have|apologies|i apologi[sz]e
let me (?:know|check|double\w*|verify|re|think|correct|see)|i(?: have|'ve)? made an? (?:mistake|error)
here(?:'s| is) (?:the|my)|you(?:'re| are) (?:absolutely |quite )?(?:right|correct)
(?:so |thus )?my (?:previous|first|earlier|initial|original)\b.*\b(?:wrong|incorrect|mistake|mistaken|error|not)
(?:so |thus )?my (?:previous|first|earlier|initial|original)\b[^,:]*\b(?:correct|right)$
there (?:is|was|might be|may be|could be|seems to be) (?:an?|some) (?:error|mistake)s?
""",
    r"""
(?:certainly|sure)[!.,]?$|(?:i'm |i am )?sorry[^,]*$
좋은 질문|질문(?:해|에|을)|더 궁금|궁금한|감사|죄송|도움이|언제든
제 (?:이전|처음|앞선) .*(?:틀렸|잘못|오류)|[^,]*다시 (?:확인|생각|검토)[^,]*(?:보았|봤|했|하겠)습니다$
""",
)
_HEARSAY = _cues(
    r"""
(?:some|many|most|few|other)\b[^,.]{0,25}\b(?:says?|thinks?|thought|believed?|assume|claim|answer|guess|confuse)
(?:others|people|they) (?:say|think|believe|assume|claim|would say|often|usually)|used to|formerly|previously|originally
(?:commonly|often|sometimes|wrongly|mistakenly|usually) (?:confused|mistaken|assumed|thought|believed|given|named|said)
I (?:first |initially |had |once |previously |at first )?(?:thought|said|answered|guessed|wrote|believed|assumed)
(?:you|one) (?:might|may|would|could) (?:think|say|guess|expect)|is (?:close|near|tempting)
(?:common|popular) (?:mistake|misconception|belief|answer)|(?:mistakes?|errors?) (?:in|with) (?:my|the|your)
(?:my|your|the) (?:previous|first|earlier|initial) (?:answer|guess|reply)\b(?!.*(?<!in)correct)
""",
    r"""
(?:라고|다고|으로|로) (?:흔히 |종종 )?(?:오해|착각|혼동|생각했|알았|답했|말했|생각하기 쉽|생각하는 (?:사람|분)|여겼)
(?:처음|이전|예전|전|과거)에는|(?:흔히|종종) .*(?:라고|다고)|(?:어떤|많은|일부|몇몇) (?:사람|이|분|학자)들?[은이]
""",
)
# What can follow a marker and is no answer: `my previous answer was wrong`.
_JUDGEMENT = re.compile(
    r"\W*(?:(?:(?:in|partly |not )?correct|wrong|right|false|true|not|mistaken|unclear|as follows|here|below)\b"
    r"|틀렸|틀린|틀립|잘못|다음과|아래와|맞습니다)",
    re.I,
)

_END = re.compile(r"((?<=[\w)%'])\s*[.!。！]+(?=\s|$)|[.!。！…]{2,}|[?？]+|\n)")
_ASIDES = [  # contrasts, comparisons, asides
    re.compile(r"\bnot (?:only |just )?[^,.;]{1,60}?,? but (?:rather |actually |instead )?(?:also )?", re.I),
    re.compile(r"(?:,\s*|\b(?:and|but) )not (?!only)[^,.;]{1,60}(?:,|(?=\.|$))", re.I),
    re.compile(r",? ?\b(?:instead of|rather than|unlike|as opposed to) [^,.;]{1,60}(?:,|(?=\.|$))", re.I),
    re.compile(r"^.*? ?(?:아니라|아니고|아닌|말고|대신(?:에)?),? "),
    re.compile(r"\S+보다 (?:더 |훨씬 )?(?:큰|작은|긴|짧은|높은|낮은|많은|적은|넓은|좁은|빠른|느린|유명한) "),
    re.compile(r",\s(?:who|which|whose)(?: [^\s,]+){4,15}, "),
    re.compile(r"\bif (?:I (?:remember|recall)(?: correctly)?|I(?: am|'m) not mistaken|memory serves),?", re.I),
    re.compile(r"\b(?:as far as I know|to my knowledge|to the best of my knowledge|in my opinion),?", re.I),
    re.compile(r"\bI(?:'ve| have)? (?:re|double)?-?(?:checked|viewed|considered|examined|verified)\b[^,.:;]*", re.I),
]
_BUT = re.compile(r"(?<![Nn]othing )(?<![Aa]nything )\b(?:but|however|yet)\b,?")
_BUT_KOREAN = re.compile(r"(?:지만|으나|는데|은데|인데|더라도|해도),?\s+")
_CONCESSION = re.compile(
    r"(?:although|though|even though|while|whereas|unlike|despite|contrary to|instead of|rather than|apart from|besides"
    r"|(?-i:which|who|where) )\b",
    re.I,
)
_CIRCUMSTANCE = re.compile(
    r"(?:\d+ \w+ (?=after|before)|in|on|at|after|before|during|since|when|because|by|from|for|as|with|under|until"
    r"|through|upon|according to|botanically|technically|historically|geographically|scientifically|politically)\b",
    re.I,
)
_CLAUSE = re.compile(
    r":\s|\s-+\s|;|(?<=[가-힣][며고])(?<![라다리]고),?\s|(?<=으로),\s"
    r"|,\s(?:and |so |then |but )?(?=(?:it|they|he|she|this|that|these|I|we)"
    r"(?:'s|\s(?:is|are|was|were|would be|has|have|say|mean|think|now|actually))\b)",
    re.I,
)
_BULLET = re.compile(r"(?m)^[ \t]*(?:[*•-]|\d{1,2}[.)])[ \t]+\**([^\n:*–—(-]{1,60}(?:-[^\n:*–—(-]{1,40})?)")


def commitment(reply: str, judging: bool) -> str:
    """The part of a reply that it commits to. A bulleted list is reduced to its items, without their explanations.

    judging: "right" and "false" are valid answers.
    """
    final = final_answer(reply)
    if final.marked and final.whole and not final.text:
        return ""  # `Wrong answer: Paris`
    text = reply
    if final.marked and final.text.strip(" *_.\n") and (judging or not _JUDGEMENT.match(final.text)):
        text = final.text
    elif retractions := list(RETRACTED.finditer(reply)):
        retraction = retractions[-1]
        after = reply[retraction.end() :]
        if retraction.group()[-1] not in ",.!: ":  # `that is wrong, ...`: after the clause
            after = re.split(r"[.,!:?\n]", after.rstrip(" \n.,!:?*_"), maxsplit=1)[-1]
        if re.search(r"\w\w", after) and (not judging or re.search(r"\w", reply[: retraction.start()])):
            text = after
    items = _BULLET.findall(text)
    return ", ".join(item.strip() for item in items) if len(items) > 1 else text


# A question without a question mark: `Is it Paris`, `파리인가요`.
_ASKING = re.compile(
    r"^(?:is|are|was|were|do|does|did|can|could|would|will|should|has|have|had)\s+(?:it|he|she|they|we|the|an?|this|that)\b"
    r"|(?:인가|인가요|나요|[을를일할]까요?|입니까|습니까)$",
    re.I,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text in normal form that can state something."""
    parts = [*_END.split(text), ""]
    said = [part for part, end in zip(parts[::2], parts[1::2], strict=True) if "?" not in end and "？" not in end]
    said = [part for part in said if not _ASKING.search(part.strip(" \t.,:;!-"))]
    return [part for part in said if re.search(r"\w", part) and not _COURTESY.match(part.lstrip(" \t.,:;!-"))]


def clauses(sentence: str) -> list[str]:
    """The clauses that a sentence commits to. An adverbial phrase at its start moves to its end."""
    sentence = sentence.strip()
    for aside in _ASIDES:
        sentence = aside.sub(" ", sentence)
    sentence = _BUT.split(_BUT_KOREAN.split(sentence)[-1])[-1].strip()
    first, comma, rest = sentence.partition(",")
    if comma and _CONCESSION.match(first):
        sentence = rest
    elif comma and _CIRCUMSTANCE.match(first):
        sentence = f"{rest.strip()}, {first}"
    parts = [part.strip() for part in _CLAUSE.split(sentence) if re.search(r"\w", part)]
    return [part for part in parts if not _HEARSAY.search(part)]


_YES = re.compile(
    r"\W*(?:(?:yes|yep|yeah|true|correct|that's right|that is right)\b|(?:네|예)(?![가-힣])"
    r"|맞(?:습니다|아요|다)|그렇(?:습니다|다)|그래요)",
    re.I,
)
_NO = re.compile(
    r"\W*(?:(?:no(?! one\b| longer\b|\. ?\d)|nope|false|incorrect|not true)\b|아니요|아니오|아뇨|아니다"
    r"|아닙니다|아니에요|그렇지 않|틀렸|틀립)",
    re.I,
)
CONCLUDES = re.compile(r"\b(?:so|hence|thus|answer is),? (?:the answer is )?(yes|no|true|false)\W*$", re.I)
ASKS_WHAT = re.compile(
    r"\b(?:what|which|who|whom|whose|when|where|why|how|name|list)\b"
    r"|무엇|무슨|어디|누구|누가|언제|몇|왜|어떻게|어떤|어느|며칠|뭐|뭘",
    re.I,
)
_ASKS_WHETHER = re.compile(
    r"(?:^|[.!?,:]\s)(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|true or false)\b"
    r"|(?:나요|까요?|니까|가요|죠|니|인가|는가|은가)\s*[?？]?\s*$",
    re.I,
)
_REQUEST = re.compile(r"\b(?:can|could|would|will) you\b|do you know|알려|말해|\bor\b(?! false)|아니면", re.I)


def asks_whether(question: str) -> bool:
    """Whether a question is a yes-no question."""
    return bool(not ASKS_WHAT.search(question) and not _REQUEST.search(question) and _ASKS_WHETHER.search(question))


def polarity(text: str) -> bool | None:
    """Whether a text says yes or no, at its start or as its conclusion; None if it says neither or both."""
    if re.search(r"\byes (?:and|or) no\b", text, re.I):
        return None
    if conclusion := CONCLUDES.search(text):
        return conclusion[1].lower() in ("yes", "true")
    return True if _YES.match(text) else False if _NO.match(text) else None

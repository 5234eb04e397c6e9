"""Extract the number that a reply commits to, or that a reference means. Imports no torch."""

from __future__ import annotations

import re
from itertools import pairwise

from scorefast.grading.answer import ALTERNATIVE, MAX_CHARACTERS, SENTENCE_END, UNIT, cached_if_short, final_answer
from scorefast.grading.numbers import NUMBER, Number, plain, value_of

_COMMA = re.compile(r"[*_`$ ]*[,;/|\n][*_`$\s]*(?:[A-Za-z]\s*=\s*)?")
_OPERATOR = re.compile(rf"[)\s$]*{UNIT}[)\s$]*(?:[-+*/÷^]|\b(?:x|times|plus|minus|divided by)\b)[(\s$]*", re.I)
_OF = re.compile(rf"{UNIT}\s(?:of|at|with|for)\s", re.I)  # `3 boxes of 4`: a product if a result follows
_EQUALS = re.compile(rf"[)\s$]*{UNIT},?[)\s$]*(?:=|\b(?:which )?(?:is|are|equals?|makes?|gives?)\s)[\s$*_]*", re.I)
# After a number, to the end: a bracket that explains it, in words or with a result, `apples (3 boxes of 4).`
_EXPLAINED = re.compile(rf"(?=[^A-Za-z가-힣=]{{0,99}}[A-Za-z가-힣=])[*_]*{UNIT}[*_ ]*\([^()]*\)[\s.*_]*")
_NEGATED_BEFORE = re.compile(
    r"(?:\bnot|n't|\bnever|\bcannot|\brules? out|\bruled out|\bexcluding|\beliminate|≠|!=)\s*"
    r"(?:(?:equal(?:\s+to)?|be|been|possibly|exactly|simply|just|the|a|an|answer|=)\s*)*[*_$(\"'\s]*$",
    re.IGNORECASE,
)
_BOUND_BEFORE = re.compile(
    r"(?:\b(?:more|less|fewer|greater|larger|smaller|higher|lower|bigger|other|rather)\s+than"
    r"|\bat\s+(?:least|most)|\b(?:up to|under|over|below|above|half of|twice|multiple of|minimum|max(?:imum)?)"
    r"|[<>≤≥]=?|\\[gl](?:eq?|t)(?:slant)?|√|\\sqrt\s*\{?|최소|최대|적어도|많아야)"
    r"\s*(?:or equal to\s*)?[*_$\s]*$",
    re.IGNORECASE,
)
_SUPPOSED_BEFORE = re.compile(  # applies to a single number; of several, the last is then a second candidate
    r"(?:\b(?:maybe|perhaps|possibly|(?:might|may|could) be|doubt|not sure|whether)|아마|혹시)"
    r"\s*(?:(?:that|if|whether)\s+)?(?:it(?:'s|\s+is)\s+)?[*_$\s]*$",
    re.IGNORECASE,
)
_CONTRASTED_BEFORE = re.compile(
    r"\b(?:(?:people|many|some) (?:say|think|believe)|(?:confused|mistaken) (?:with|for)|instead of|unlike"
    r"|anything but)\s*(?:that\s+)?(?:it(?:'s|\s+is)\s+)?[*_$\s]*$",
    re.IGNORECASE,
)
_SUPPOSED_AFTER = re.compile(
    rf"[*_`)\"'\s]*{UNIT}\s*(?:(?:is|was)\s+(?:(?:a|an|just|only|often|commonly)\s+){{0,2}}"
    r"(?:common\s+)?(?:mistake|guess|myth|distractor|misconception|mistaken)|would be (?:wrong|incorrect|a mistake))"
    r"|[*_`)\"'\s]*[가-힣%]{0,3}?(?:인지|일지)(?![가-힣])",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    rf"[*_`)\"'\s]*{UNIT}\s*(?:(?:is|was|are)\s*(?:not\b|n't|wrong|incorrect|false)|isn't|wasn't"
    r"|or\s+(?:more|less|fewer|higher|lower|above|below)\b|and\s+(?:above|below)\b)"
    r"|\+(?!\w|\s*[-\d$(\\])"
    r"|[*_`) ]*(?:(?!(?:is|was|as|and|but|the|a) )[a-z]+ )?"
    r"(?:at (?:the )?(?:least|most)|minimum|max(?:imum)?)\b(?![ $:=]*\d)"
    r"|[*_`)\"'\s]*(?:[가-힣%]{0,4}\s?)?(?:정?답이\s?)?(?:아니(?!면)|아닌|아닙|틀렸|틀린|이상|이하|미만|초과|보다|넘(?!겨))"
    r"|[*_`)\"'\s]*[가-힣%]{0,3}?(?:[은는]\s(?:정?답이\s)?(?:될|맞을)\s수\s없|(?:일|라고\s볼|으로\s볼|로\s볼)\s수도\s있)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|unable to|not able to|couldn't|not possible to|impossible to)\s+(?:\w+\s+){0,2}?"
    r"(?:solve|answer|determine|find|compute|calculate|tell|say|know)\b[^.!?\n]*$",
    re.IGNORECASE,
)
_REFUSAL_AFTER = re.compile(r"[^.!?\n]*(?:알|구할|풀|계산할|답할) 수 없")
_BULLET = re.compile(r"(?m)^[ \t>*_]*\(?(\d{1,2})[.)](?=[ \t]+\S)")

# LaTeX commands that only typeset a number. Any other command beside a number makes it a part of a formula.
_SETTING = (
    r"(?:circ|degree|q?quad|enspace|hspace|therefore|because|color|normalsize|[lL]arge|LARGE|[hH]uge|checkmark|qed|to|sim"
    r"|(?:black)?square|begin|end|tag|label|euro|pounds?|cents?|boxed|fbox|newline|hline|item|Omega|mu)(?![A-Za-z])"
)
_COMMAND = rf"\\(?!{_SETTING})[A-Za-z]+"
_LETTER = r"[b-z](?![\w'’]|\.\w)"  # one letter alone, and neither the article nor `e.g.`
_FORMULA_AFTER = re.compile(
    rf"""\s*
    (?: [)}}\]\s]{{0,3}} (?: \.?{_COMMAND} | \^(?!\s*\{{?\s*(?:\\circ|°)) | _[\w{{}}] | !(?=[\w$(\\^*/]|\)\s*[/*^]) )
      | [πθ√∛∞∑∫∪∩∈±]  |  pi\b  |  [<>≤≥](?![A-Za-z/]{{1,10}}>)  |  (?<=\s):\s*\d
      | (?<=\d)\( (?: [^()]{{0,40}} (?<![A-Za-z'’]) (?:[b-z](?![A-Za-z'’])|\\) | [\d+*/^-]+\)[\w(^] )
      | [xyz] (?: [xyz]+\b | \s*[-+^<>=] ) | x\d
      | (?:[A-Za-z]\b)? \s* (?:[-+÷]|(?<!\*)\*(?!\*)) \s* (?: {_COMMAND} | [√π∛] | {_LETTER} )
      | [xyz]? \s? / \s* (?: \( | {_COMMAND} | [b-gi-rt-z](?!\w) )  # 60 m/s and 5/h are quantities
      | [+*^÷] \s* \(  |  \+\s+[a-z]{{2}}
      | ,\s* [-+]? (?: {_COMMAND} | ∞ | [b-z]\s*[)\]}}] )
      | (?:[A-Za-z]+\s+)? and\s+ (?:(?:an?|one|two|three)[\s-]+)? (?:half|(?:third|quarter|fourth|fifth)s?)\b(?!-)
      | (?:squared|cubed|factorial)\b  |  \(?mod\b  |  (?:square\s+)?roots?\s+(?:of\b|\d)
      | (?:plus|minus|times|divided\s+by)\s+ (?: \\ | √ | {_LETTER} | (?:pi|sqrt|log|(?:the\s+)?(?:square\s+)?root)\b )
    )""",
    re.VERBOSE,
)
_FORMULA_BEFORE = re.compile(
    rf"""(?: {_COMMAND} \s* (?:_(?:\{{\w+\}}?|\w+))? (?:\[[^\[\]]*\]?)? [\s({{]*
      | (?<![A-Za-z]) (?: (?:sqrt|log|ln|lg|exp|sin|cos|tan|gcd|lcm|mod)\s*(?:_\{{?\w+\}}?)? | roots?\s+of )
      | [\^_]\s*\{{ \s*[-+]?  |  (?<![\w)])-[({{]
      | [πθ√∛∞±] \s* [-+*/]?
      | (?: (?<![\w'’\\])[b-z] | {_COMMAND} | [πθ]) \s* [-+/÷]
      | (?<![\w'’\\])[b-z]\s*\*  |  \^\{{?[-+]?\w+\}}?\s*[-+*/÷]  |  (?<![A-Za-z])[a-z]\)\s*[-+]  |  [)}}\]]\s?[/*^]
      | (?: \\infty | ∞ | [(\[{{]\s*[b-z] ) \s*,  |  ^\s*[\d.]+\s*:\s
    ) [\s({{]* \Z""",
    re.VERBOSE,
)


def is_part(text: str, number: re.Match[str], *, complete: bool = False) -> bool:
    """Whether a number is only a part of a formula: `4\\sqrt{2}`, `4!`, `\\log 4`, `4/x`, `x + 4`, `4 and a half`.

    A unit, or a letter that may be one, can follow the number. complete: the text is exactly the answer, so a `!` after
    it is a factorial.
    """
    end = number.end()
    if _FORMULA_AFTER.match(text, end) or _FORMULA_BEFORE.search(text[max(number.start() - 40, 0) : number.start()]):
        return True
    alone = complete or not text[: number.start()].strip(" $")
    return alone and text.startswith("!", end) and not text[end + 1 :].strip(" $.")


def final_number(reply: str) -> Number | None:
    """The one number that a reply commits to; None if there is none or several."""
    number = number_or_reason(reply)
    return number if isinstance(number, Number) else None


def number_or_reason(reply: str) -> Number | str:
    """The one number that a reply commits to, or the reason why there is none."""
    final = final_answer(reply)
    text = plain(final.text)
    if final.marked:
        if numbers := _asserted_numbers(text):
            return _resolve(text, numbers, _after_equals(text, numbers), complete=final.whole)
        if final.whole or NUMBER.search(text):
            return _why_none(text)  # a marked answer without a number, or with a denied one
        text = plain(reply[-MAX_CHARACTERS:])
    for size in (
        600,
        MAX_CHARACTERS,
    ):  # most replies need no full search: the last statement is at the end
        tail = text[text.find("\n", max(len(text) - size, 0)) + 1 :] if len(text) > size else text
        numbers = _asserted_numbers(tail)
        if len(numbers) > 3 or len(tail) == len(text):
            break
    if not numbers:
        return _why_none(tail)
    if _REFUSAL.search(tail, 0, numbers[-1].start()) or _REFUSAL_AFTER.match(tail, numbers[-1].end()):
        return "says it cannot tell"
    if any(m.start() > numbers[-1].end() and value_of(m) == value_of(numbers[-1]) for m in NUMBER.finditer(tail)):
        return "denied later"  # `... = 12, so it is fewer than 12`
    ends = "(" in tail[-200:] and tail[-20:].rstrip(" \n.*_").endswith(")")  # `12 apples (3 boxes of 4)`
    explained = (i for i, m in enumerate(numbers[:-2]) if ends and _EXPLAINED.fullmatch(tail, m.end()))
    return _resolve(tail, numbers, next(explained, len(numbers) - 1))


def _why_none(text: str) -> str:
    found = list(NUMBER.finditer(text))
    if not found:
        return "no number"
    return "asked, not stated" if _is_asked(text, found[-1]) else "denied, supposed, or only a bound"


def _asserted_numbers(text: str) -> list[re.Match[str]]:
    """Matches of `NUMBER` that are asserted: not denied, supposed, asked, or a list number."""
    found = list(NUMBER.finditer(text))
    if not found:
        return []
    bullets = {m.start(1) for m in _BULLET.finditer(text)} if "." in text or ")" in text else set()
    stated = [m for m in found if m.start() not in bullets] or found
    if "?" in text:
        stated = [m for m in stated if not _is_asked(text, m)]
    stated = [m for m in stated if not _is_denied(text, m)]
    if len(found) == 1 and stated and _SUPPOSED_BEFORE.search(text, max(found[0].start() - 40, 0), found[0].start()):
        return []
    return stated


def _is_asked(text: str, number: re.Match[str]) -> bool:
    end = SENTENCE_END.search(text, number.end(), number.end() + 300)
    return end is not None and end.group() in "?？"


def _is_denied(text: str, number: re.Match[str]) -> bool:
    before = text[max(number.start() - 40, 0) : number.start()]
    if _NEGATED_BEFORE.search(before) or _BOUND_BEFORE.search(before) or _CONTRASTED_BEFORE.search(before):
        return True
    return any(after.match(text, number.end(), number.end() + 40) for after in (_DENIED_AFTER, _SUPPOSED_AFTER))


def _after_equals(text: str, numbers: list[re.Match[str]]) -> int:
    """Index of the number at the start of a marked text, else of the first after the last `=` (`9 * 2 = 18 eggs`), else
    of the last (`10 and 8, which is 18`)."""
    last, at = len(numbers) - 1, 0
    if last and not text[: numbers[0].start()].strip(" $*_`~(:"):
        gaps = [text[a.end() : b.start()][:60] for a, b in pairwise(numbers)] + [""]
        while _OPERATOR.fullmatch(gaps[at]) or _OF.fullmatch(gaps[at]):
            at += 1
        if at and _EQUALS.fullmatch(gaps[at]):  # `3 boxes of 4 apples is 12`
            last = at + 1
        elif not re.match(r"[\s$)*_]*[-+*/^=x÷<>]", text[numbers[0].end() :]) and not _OPERATOR.fullmatch(gaps[0]):
            return 0  # `18, because 9 * 2 = 18`
    equals = text.rfind("=")
    return last if equals < 0 else next((i for i, m in enumerate(numbers) if m.start() > equals), last)


def _resolve(text: str, numbers: list[re.Match[str]], at: int, *, complete: bool = False) -> Number | str:
    """The number at index `at`, or the reason why it does not count.

    It may be one of several candidates, or a part of a formula or of an unevaluated sum. complete: the text is exactly
    the answer, so any other value beside the number is a second candidate.
    """
    value = value_of(numbers[at])
    if value is None:
        return "no number"
    if is_part(text, numbers[at], complete=complete):
        return "part of a formula"
    beside = [i for i in (at - 1, at + 1) if 0 <= i < len(numbers)]
    for i in beside:
        left, right = sorted((numbers[i], numbers[at]), key=lambda m: m.start())
        between = text[left.end() : right.start()]
        if len(between) > 60:
            continue
        if _OPERATOR.fullmatch(between):
            return "a sum left undone"
        other = value_of(numbers[i])
        if other is not None and other.value == value.value:
            continue
        change = "to" in between.split() and text[: left.start()].rstrip(" $*")[-4:].lower() == "from"
        if ALTERNATIVE.fullmatch(between) and not change:  # `from 10 to 18` ends at 18
            return "several candidates"
        if _COMMA.fullmatch(between) and (complete or _is_list(text, numbers, min(i, at))):
            return "several candidates"
    return value


def _is_list(text: str, numbers: list[re.Match[str]], left: int) -> bool:
    """True for `16, 17, 18`, and for `18, 20` alone; False for `in 2010, 18 were left`."""
    first, second = numbers[left], numbers[left + 1]
    if left and _COMMA.fullmatch(text[numbers[left - 1].end() : first.start()]):
        return True
    if left + 2 < len(numbers) and _COMMA.fullmatch(text[second.end() : numbers[left + 2].start()]):
        return True
    return not text[: first.start()].strip(" *_$([{") and not text[second.end() :].strip(" *_$.)]}")


@cached_if_short
def reference_number(reference: str) -> Number | None:
    """The number that a reference commits to, else its last number ("18 or 20 eggs").

    None if it contains no number, or a formula.
    """
    number = number_or_reason(reference)
    if isinstance(number, Number):
        return number
    text = plain(reference[-MAX_CHARACTERS:])
    found = list(NUMBER.finditer(text))
    if not found or number in ("part of a formula", "a sum left undone") or any(is_part(text, m) for m in found):
        return None
    return value_of(found[-1])


# What makes the text before a number a sentence: `It is 18` states a number, `Apollo 11` is a name.
_STATES = re.compile(
    r"=|:|\b(?:is|are|was|were|be|equals?|has|have|had|makes?|made|costs?|gets?|got|needs?|pays?|sold|sells?|left|total|spent)\b"
    r"|[가-힣]+[은는이가]\s|(?:\S+\s+){5}"
)
_ONE_UNIT = re.compile(
    r"\s?(?:(?:square |cubic )?[A-Za-z°]+(?:/[a-z]{1,4}| per [a-z]+)?(?:\^?[23])?|[€$£¥₩]|\s?[가-힣]{1,4})\.?"
)


@cached_if_short
def is_numeric_reference(reference: str) -> bool:
    """Whether a reference is a number: `18`, `... #### 18`, `It is $18.` or `18 cm`, not `May 1st`."""
    final = final_answer(reference)
    text = plain(final.text).rstrip(" .,;:?)}*$\n\t")
    numbers = list(NUMBER.finditer(text))
    if not numbers or is_part(text, numbers[0 if final.whole else -1]):
        return False
    text = text.rstrip("!")
    if final.marked:
        return not final.whole or _is_number_with_unit(text, numbers[0])
    if len(numbers) == 1 and not text[: numbers[0].start()].strip() and _ONE_UNIT.fullmatch(text[numbers[0].end() :]):
        return True  # 18 cm
    if numbers[-1].end() < len(text) or final_number(reference) is None:
        return False
    before = text[max(numbers[-1].start() - 500, 0) : numbers[-1].start()].strip(" $")
    return not re.search(r"[-+*/^,(\[{<>]$", before) and (not before or bool(_STATES.search(before)))


def _is_number_with_unit(text: str, match: re.Match[str]) -> bool:
    """True for `18 cm` and `x = 18`; False for `2\\sqrt{3}`, `(1, 2)` and `3x + 1`."""
    rest = text[match.end() :].strip()
    before = text[: match.start()].strip(" $")
    return not re.search(r"[\\^+*/=,(\[{]|\d", rest) and not re.search(r"[\\^+*/,(\[{]|\d", before)

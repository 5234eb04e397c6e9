"""What a reply commits to: its final answer, and the numbers in it. Pure functions of text. Imports no torch.

A reply gets one shot. Its final answer is what follows its last marker (`#### x`, `\\boxed{x}`, `The answer is x`,
`Answer: x`, `A: x`, `정답은 x`), unless the reply takes it back ("Wait, ..."); without a marker, its last statement.
Of a sum worked out (`5 apples + 7 apples = 12`) the result counts; `#### Step 1` with a solution after it is a heading.
Several candidates ("18 or 20", "16, 17, 18"), what is negated ("not 18"), a bound ("more than 18"), a sum left
undone ("9 + 9") and what is only asked ("Is it 18?") commit to nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, wraps
from itertools import pairwise
from typing import TypeVar

from scorefast.presets import without_calculator

LONGEST = 20_000  # of a longer text only so many last characters are looked at, so that no reply takes long


@dataclass(frozen=True)
class Grade:
    """correct: counted as right. score in [0, 1]: how near, 1 exactly when correct. answer: what was graded.

    reason: why, in a few words (`grade --explain`). unsure: the rules cannot tell, and so count the reply as wrong.
    """

    correct: bool
    score: float
    answer: str = ""
    reason: str = ""
    unsure: bool = False


# --- markers ---------------------------------------------------------------------------------------------------

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?=[\w$.-])")
_STARTS = ("####", "answer", "Answer", "ANSWER", "A:", "A*", "답")  # found fast; then `_PHRASE` has to match there
_PHRASE = re.compile(
    r"""\#{4}
      | (?<!\w)answers?\b (?:\s+(?!is\b|are\b|was\b)[\w']+){0,4}? \s*[*_`]* \s*
        (?::|=|(?:is|are|was|equals|(?:would|should|must|will)\s+be)\b\s*:?)
      | (?<=<)answer>
      | (?P<heading> (?<!\w)answer[ \t*_]*$ )
      | (?P<line> A[*_]*: )
      | (?:(?<=정)|(?<=해)|(?<![가-힣]))답[*_]* \s* (?:은|는|:|=) \s*:?
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_BEFORE_HEADING = re.compile(r"[ \t>#*_]*(?:final[ \t]+)?", re.IGNORECASE)
RETRACTED = re.compile(
    r"(?:(?:^|[.!?。\n])[\s*_)$}]*(?:but\s+)?(?:(?:wait|no|oops|sorry|hmm|actually|correction|아니|잠깐|죄송\w*)[,.!: ]"
    r"|let me (?:re|correct|fix|try)|on second thought|scratch that|다시 (?:계산|생각|풀)|정정)"
    r"|\b(?:that|this|which|it)(?:'s| is| was) (?:wrong|incorrect|not right)|\bI made an? (?:mistake|error)|틀렸|실수)",
    re.IGNORECASE,
)
_NEGATED_MARKER = re.compile(
    r"(?:n't|\bnot|\bnever|\bdoubt|\bfalse|\bwrong|\bincorrect)\b[^.,!?]{0,30}\Z", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"</|(?<=[^\W\d])[.!](?=\s|$)|[.!?](?=\s|$)|[。？！]|\n")


Found = TypeVar("Found")


def remembered(function: Callable[[str], Found]) -> Callable[[str], Found]:
    """A function of a reference answer, which comes again with every reply to it. Of a long one nothing is kept."""
    cached = lru_cache(maxsize=65_536)(function)
    return wraps(function)(lambda text: cached(text) if len(text) <= 200 else function(text))


@dataclass(frozen=True)
class Final:
    """text: what the reply commits to. marked: a marker introduced it. whole: nothing but it belongs to the answer
    (boxed, or the line of `####`)."""

    text: str
    marked: bool
    whole: bool = False


def final_answer(reply: str) -> Final:
    """The text after the reply's last marker, up to the end of its sentence or brace; else the reply itself."""
    reply = reply[-LONGEST:]
    boxes = list(_BOXED.finditer(reply)) if "\\boxed" in reply or "\\fbox" in reply else []
    markers = [(m.end(), m) for m in (*boxes, *_phrases(reply))]
    for _, match in sorted(markers, key=lambda m: m[0], reverse=True):
        final, end = _boxed(reply, boxes, match) if match in boxes else _phrased(reply, match)
        if not final.text.strip(" \t\n.:*_$"):
            continue  # a marker that introduces nothing
        taken_back = RETRACTED.search(reply, end)
        if taken_back and re.search(r"\w", reply[taken_back.end() :]):
            break  # what the reply ends on counts
        line = max(match.start() - 60, reply.rfind("\n", 0, match.start()) + 1)
        if match not in boxes and _NEGATED_MARKER.search(reply, line, match.start()):
            return Final("", marked=True, whole=True)  # `I don't think the answer is 18`
        return final
    return Final(reply, marked=False)


def _phrases(reply: str) -> Iterator[re.Match[str]]:
    for word in _STARTS:
        start = reply.find(word)
        while start >= 0:
            match = _PHRASE.match(reply, start)
            anywhere = match is not None and match.lastgroup is None
            if match and (anywhere or _BEFORE_HEADING.fullmatch(reply, reply.rfind("\n", 0, start) + 1, start)):
                yield match
            start = reply.find(word, start + 1)


def _phrased(reply: str, marker: re.Match[str]) -> tuple[Final, int]:
    start = marker.end()
    while start < len(reply) and reply[start] in " \t\n*_:`":
        start += 1
    if marker.group() == "####":
        end = (reply + "\n").find("\n", start)
        heading = reply[end:].strip() and not _VALUE_ALONE.fullmatch(plain(reply[start : min(end, start + 80)]))
        return Final("" if heading else reply[start:end], marked=True, whole=True), end
    if marker.group().endswith(":") and not _DIRECT.match(reply, start):
        return Final(reply[start:], marked=True), len(reply)  # `A: ` and a worked solution: what that ends on
    found = _SENTENCE_END.search(reply, start)
    while found and found.group() == "." and _is_abbreviation(reply, start, found.start()):
        found = _SENTENCE_END.search(reply, found.end())
    end = found.start() + (found.group() in "?？") if found else len(reply)
    operands, equals, _ = reply[start:end].partition("=")
    if equals and marker.group().endswith(":") and len(_NUMBER.findall(operands)) > 1:
        end = (reply + "\n\n").find("\n\n", end)  # `A: 16 - 7 = 9. 9 * 2 = 18`: what its paragraph ends on
    return Final(reply[start:end], marked=True), end


# After `####` with more lines to come: an answer (`$18`, `x = 5 cm`, `(B)`), and not a heading (`Step 1`, `3. Total`).
_VALUE_ALONE = re.compile(
    r"\W{0,9}(?:[A-Za-z] ?= ?)?\W{0,9}(?:\d[\d,./ ]*(?<![. ])(?:\s?[a-z°가-힣][\w°/^]{0,15}){0,2}|[A-E①-⑤])\W{0,9}"
)
# An answer, and not a sentence or a list: a number, a formula or up to six words before the line or the sentence ends.
_DIRECT = re.compile(
    r"(?!\d{1,2}[.)]\s+\S)[*_`$(\[\\]{0,20}"
    r"(?:[-+]?[$€£₩]?\.?\d|[^\s.=\d]++(?:[ \t]+[^\s.=\d]++){0,5}[ \t]*[.*_`$)]*(?:\n|\Z))"
)

# Behind an initial: more of a name, up to the end of the sentence.
_NAME = re.compile(r" (?:[^\W\da-z_][\w'’-]*\.? ){0,4}[^\W\da-z_][\w'’-]+(?=[.!*_)\"]| *(?:\n|\Z))")


def _is_abbreviation(reply: str, start: int, dot: int) -> bool:
    word = re.split(r"[\s(]", reply[max(start, dot - 20) : dot])[-1]
    if re.fullmatch(r"(?:[^\W\d_]\.)*[A-Z]", word):  # `J. K. Rowling`, not `B. It is` or `A. Wait, no`
        return _NAME.match(reply, dot + 1) is not None and not RETRACTED.match(reply, dot)
    return word.lower() in {"approx", "ca", "no", "st", "dr", "mr", "mrs", "ms", "rs", "vs", "e.g", "i.e"}


def _boxed(reply: str, boxes: Sequence[re.Match[str]], box: re.Match[str]) -> tuple[Final, int]:
    """The content of a box; with boxes joined to it by "or", all of them, so that they are seen to be several."""
    content, end = _braced(reply, box.end())
    before = boxes[boxes.index(box) - 1] if boxes.index(box) else None
    if before is not None:
        other, closed = _braced(reply, before.end())
        between = reply[closed : box.start()]
        if other.strip() != content.strip() and len(between) < 40 and _ALTERNATIVE.fullmatch(between.replace("$", " ")):
            content = f"{other} or {content}"
    after = re.match(r"[\s$\\)\]]*(?:or|또는|혹은|아니면)\b[^.\n]*", reply[end:])
    if after and any(c.isdigit() for c in after.group()):
        content += after.group()
    return Final(content, marked=True, whole=True), end


def _braced(text: str, start: int) -> tuple[str, int]:
    """What stands between the brace at `start` and its partner (a bare token where there is no brace), and its end."""
    if not text.startswith("{", start):
        token = re.compile(r"\S+").match(text, start)
        return (token.group().rstrip("$."), token.end()) if token else ("", start)
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i], i + 1
    return text[start + 1 :], len(text)


# --- numbers ---------------------------------------------------------------------------------------------------

_VULGAR = {c: f" {unicodedata.normalize('NFKC', c).replace(chr(0x2044), '/')}" for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_PLAIN = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u2014": " - ", "\u2044": "/", "×": "*", "⋅": "*", "·": "*", "∙": "*"}
    | {"’": "'", "‘": "'", "→": "=", "⇒": "="}
)
_LATEX = [
    (re.compile(r"\\(?:left|right|displaystyle|mathrm|mathbf|textbf|text|mbox|rm|bf|quad|qquad)(?![A-Za-z])\s*"), ""),
    (re.compile(r"(?<=\d)\s*(?=\\[dtc]?frac)"), " "),  # 1\frac{1}{2} is a mixed number
    (re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))"), r"\1\2/\3\4 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!;: ](?=\d)"), ""),
    (re.compile(r"\\([$%#&_{}])"), r"\1"),
    (re.compile(r"\\[()\[\]]"), " "),
]
_SYMBOLS = {"times|cdot": "*", "div": "÷", r"approx|simeq": "~", r"neq?": "!=", r"implies|[Rr]ightarrow": "="}
_LATEX += [(re.compile(rf"\\(?:{names})(?![A-Za-z])"), new) for names, new in _SYMBOLS.items()]

_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MYRIADS = {"만": 10**4, "억": 10**8, "조": 10**12}
_NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_^]) (?<!\d[.:,/])
    (?P<sign> (?<![\w)\]}%]) [-+] )? (?:[$€£¥₩]\s?)? (?P<sign2>(?<=[$€£¥₩])[-+])?
    (?: (?P<korean> (?:\d[\d,]*(?:\.\d+)?\s?[천백]?[조억만천백]\s?)+ (?:(?:\d{1,3}(?:,\d{3})++|\d++)(?!\.\d))? )
      | (?P<whole>\d{1,6})[ ](?P<top>\d{1,6})/(?P<bottom>\d{1,6})(?![/\d])
      | (?P<digits> \d{1,3}(?:,\d{3})++(?!\d)(?:\.\d++)? | \d++(?:\.\d++)? | (?<![^\s$(=-])\.\d++ )
        (?: /(?P<over>\d++(?:\.\d++)?)(?!/)
          | [eE](?P<e>[-+]?\d{1,3})(?![\w.])
          | \s?[*x]\s?10\s?\^\s?[{(]?(?P<ten>[-+]?\d{1,3})[})]?
          | \^[{(]?(?P<power>[-+]?\d{1,3})[})]?
          | [\s-](?P<word>hundred|thousand|million|billion|trillion)\b )?
    )
    (?!\.?\d | [:^]\d | ,\d{3} | (?:st|nd|rd|th)\b)
    (?P<percent>\s{0,2}(?:%|퍼센트|프로(?![가-힣])|percent\b))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_KOREAN_PART = re.compile(r"(\d[\d,]*(?:\.\d+)?)?\s?([천백])?([조억만])?")


@dataclass(frozen=True, slots=True)
class Number:
    """value: with a per cent sign counted in (75 % is 3/4). percent: whether there was one."""

    value: Fraction | int
    percent: bool = False

    def __str__(self) -> str:
        return f"{self.value * 100}%" if self.percent else str(self.value)

    def readings(self) -> tuple[Fraction | int, ...]:
        """0.75 for 0.75; 0.75 and 75 for 75 %, which may answer "what share?" or "how many per cent?"."""
        return (self.value, self.value * 100) if self.percent and not -0.01 < self.value < 0.01 else (self.value,)


def plain(text: str) -> str:
    """Text with its numbers in ASCII: full-width digits, vulgar fractions, superscripts, LaTeX, calculator marks."""
    if not text.isascii():
        text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
        text = re.sub("[" + "".join(_VULGAR) + "]", lambda m: _VULGAR[m.group()], text)
        text = re.sub(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m.group().translate(_SUPERSCRIPT), text)
        text = re.sub(r"[₀-₉]+", lambda m: "_" + m.group(), text)
        text = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    if "<<" in text:
        text = without_calculator(text)
    if "</" in text:
        text = re.sub(r"</?[A-Za-z]{1,10}>", "", text)
    if "egative" in text:
        text = re.sub(r"\b[Nn]egative\s+(?=[$\d])", "-", text)
    if ">" in text:
        text = re.sub(r"(?<=[\d)])\s*[-=]>", " =", text)  # 6 + 6 => 12
    if "\\" in text or "{" in text:
        for pattern, new in _LATEX:
            text = pattern.sub(new, text)
        text = re.sub(r"(?<![\^_])\{([^{}]*)\}", r"\1", text)
    return text


def _value(match: re.Match[str]) -> Number | None:
    """The value of a match of `_NUMBER`; None where it has none (1/0) or too many digits to be one."""
    value: Fraction | int
    sign, sign2, korean, whole, digits, percent = match.group("sign", "sign2", "korean", "whole", "digits", "percent")
    try:
        if korean:
            value = _korean_value(korean)
        elif whole:
            value = int(whole) + Fraction(int(match["top"]), int(match["bottom"]))
        elif len(digits) > 400:
            return None
        else:
            value = _exact(digits)
            if match.end("digits") < match.end():
                over, power, e, ten, word = match.group("over", "power", "e", "ten", "word")
                if over:
                    value = Fraction(value) / _exact(over)
                elif power:
                    value = Fraction(value) ** int(power)
                elif e or ten:
                    value *= Fraction(10) ** int(e or ten)
                elif word:
                    value *= 10 ** _WORDS[word.lower()]
    except (ValueError, ZeroDivisionError):
        return None
    if "-" in (sign, sign2):
        value = -value
    return Number(Fraction(value) / 100, True) if percent else Number(value)


def _exact(digits: str) -> Fraction | int:
    digits = digits.replace(",", "")
    return int(digits) if digits.isdecimal() else Fraction(digits)


def _korean_value(text: str) -> Fraction:
    """1만 8천 = 18,000; 2억 3천만 = 230,000,000."""
    total = section = Fraction(0)
    for digits, small, big in _KOREAN_PART.findall(text):
        if digits:
            section += Fraction(digits.replace(",", "")) * {"천": 1000, "백": 100, "": 1}[small]
        if big:
            total, section = total + section * _MYRIADS[big], Fraction(0)
    return total + section


def parse_number(text: str) -> Number | None:
    """The value of a text that is one number and nothing else: `-3`, `1,234.50`, `$18`, `3/4`, `75%`, `1.2e3`."""
    text = plain(text).strip()
    match = _NUMBER.fullmatch(text)
    return _value(match) if match else None


# --- which number a reply commits to -----------------------------------------------------------------------------

_UNIT = r"(?:\s?/?[A-Za-z가-힣°]{1,20}\.?){0,2}?"  # at most two words between a number and what joins it to the next
_ALTERNATIVE = re.compile(
    rf"""[*_`)\s]* {_UNIT} [*_`)\s]*
    (?: [,;.]?\s*\(?(?:(?:and\s*/\s*)?or|and|and\ also|alternatively)\b
      | [,;.]?\s*(?:또는|혹은|아니면|이나|나|거나|이거나|내지|인지|하고|와|과)\b
      | [,;(]\s*(?:or\s+)?(?:maybe|perhaps|possibly|probably|아마|어쩌면)
      | [~/] | \s?-{{1,2}}\s? | \s?to\b | \s?through\b | 에서 )
    (?: \s+(?:maybe|perhaps|possibly|even|else|either|also|it\s+(?:(?:could|might|may)\s+be|is|was)))*
    [,(:]*[*_`$\s]*(?:[A-Za-z]\s*=\s*)?""",
    re.VERBOSE | re.IGNORECASE,
)
_COMMA = re.compile(r"[*_`$ ]*[,;/|\n][*_`$\s]*(?:[A-Za-z]\s*=\s*)?")
_OPERATOR = re.compile(rf"[)\s$]*{_UNIT}[)\s$]*(?:[-+*/÷^]|\b(?:x|times|plus|minus|divided by)\b)[(\s$]*", re.I)
_OF = re.compile(rf"{_UNIT}\s(?:of|at|with|for)\s", re.I)  # `3 boxes of 4`: an operation if a result follows
_EQUALS = re.compile(rf"[)\s$]*{_UNIT},?[)\s$]*(?:=|\b(?:which )?(?:is|are|equals?|makes?|gives?)\s)[\s$*_]*", re.I)
# Behind a number, to the end: a parenthesis that explains it, in words or with a result, `apples (3 boxes of 4).`
_EXPLAINED = re.compile(rf"(?=[^A-Za-z가-힣=]{{0,99}}[A-Za-z가-힣=])[*_]*{_UNIT}[*_ ]*\([^()]*\)[\s.*_]*")
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
_DENIED_AFTER = re.compile(
    rf"[*_`)\"'\s]*{_UNIT}\s*(?:(?:is|was|are)\s*(?:not\b|n't|wrong|incorrect|false)|isn't|wasn't"
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


def final_number(reply: str) -> Number | None:
    """The one number a reply commits to; None where it commits to none or to several (see the module's text)."""
    final = final_answer(reply)
    text = plain(final.text)
    if final.marked:
        if numbers := _asserted(text):
            return _settled(text, numbers, _after_equals(text, numbers), complete=final.whole)
        if final.whole or _NUMBER.search(text):
            return None  # a marked answer that is no number, or denies the one it names
        text = plain(reply[-LONGEST:])
    for size in (600, LONGEST):  # the last statement stands at the end: most replies need not be searched in full
        tail = text[text.find("\n", max(len(text) - size, 0)) + 1 :] if len(text) > size else text
        numbers = _asserted(tail)
        if len(numbers) > 3 or len(tail) == len(text):
            break
    if not numbers or _REFUSAL.search(tail, 0, numbers[-1].start()) or _REFUSAL_AFTER.match(tail, numbers[-1].end()):
        return None
    if any(m.start() > numbers[-1].end() and _value(m) == _value(numbers[-1]) for m in _NUMBER.finditer(tail)):
        return None  # `... = 12, so it is fewer than 12`
    ends = "(" in tail[-200:] and tail[-20:].rstrip(" \n.*_").endswith(")")  # `12 apples (3 boxes of 4)`
    explained = (i for i, m in enumerate(numbers[:-2]) if ends and _EXPLAINED.fullmatch(tail, m.end()))
    return _settled(tail, numbers, next(explained, len(numbers) - 1))


def _asserted(text: str) -> list[re.Match[str]]:
    """Matches of `_NUMBER` that the text states: neither denied, nor asked, nor numbering a list."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return []
    bullets = {m.start(1) for m in _BULLET.finditer(text)} if "." in text or ")" in text else set()
    stated = [m for m in found if m.start() not in bullets] or found
    if "?" in text:
        stated = [m for m in stated if not _is_asked(text, m)]
    return [m for m in stated if not _is_denied(text, m)]


def _is_asked(text: str, number: re.Match[str]) -> bool:
    end = _SENTENCE_END.search(text, number.end(), number.end() + 300)
    return end is not None and end.group() in "?？"


def _is_denied(text: str, number: re.Match[str]) -> bool:
    before = text[max(number.start() - 40, 0) : number.start()]
    if _NEGATED_BEFORE.search(before) or _BOUND_BEFORE.search(before):
        return True
    return _DENIED_AFTER.match(text, number.end(), number.end() + 40) is not None


def _after_equals(text: str, numbers: list[re.Match[str]]) -> int:
    """Index of the number a marked text begins with, else of the first after its last `=` (`9 * 2 = 18 eggs`), else of
    its last (`10 and 8, which is 18`)."""
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


def _settled(text: str, numbers: list[re.Match[str]], at: int, *, complete: bool = False) -> Number | None:
    """The number at index `at`, unless it is one of several candidates or an operand of a sum left undone.

    complete: the text is all answer, so that any other value in it beside the number is a second candidate.
    """
    value = _value(numbers[at])
    if value is None:
        return None
    beside = [i for i in (at - 1, at + 1) if 0 <= i < len(numbers)]
    for i in beside:
        left, right = sorted((numbers[i], numbers[at]), key=lambda m: m.start())
        between = text[left.end() : right.start()]
        if len(between) > 60:
            continue
        if _OPERATOR.fullmatch(between):
            return None
        other = _value(numbers[i])
        if other is not None and other.value == value.value:
            continue
        change = "to" in between.split() and text[: left.start()].rstrip(" $*")[-4:].lower() == "from"
        if _ALTERNATIVE.fullmatch(between) and not change:  # `from 10 to 18` ends at 18
            return None
        if _COMMA.fullmatch(between) and (complete or _is_list(text, numbers, min(i, at))):
            return None
    return value


def _is_list(text: str, numbers: list[re.Match[str]], left: int) -> bool:
    """`16, 17, 18`, or `18, 20` and nothing else; but not `in 2010, 18 were left`."""
    first, second = numbers[left], numbers[left + 1]
    if left and _COMMA.fullmatch(text[numbers[left - 1].end() : first.start()]):
        return True
    if left + 2 < len(numbers) and _COMMA.fullmatch(text[second.end() : numbers[left + 2].start()]):
        return True
    return not text[: first.start()].strip(" *_$([{") and not text[second.end() :].strip(" *_$.)]}")


@remembered
def reference_number(reference: str) -> Number | None:
    """The number of a reference answer: what it commits to, or else its last number. None where it holds none."""
    number = final_number(reference)
    if number is None:
        found = list(_NUMBER.finditer(plain(reference[-LONGEST:])))
        number = _value(found[-1]) if found else None
    return number


# What makes a sentence of the text before a number: `It is 18` is a number, `Apollo 11` is a name.
_STATES = re.compile(
    r"=|:|\b(?:is|are|was|were|be|equals?|has|have|had|makes?|made|costs?|gets?|got|needs?|pays?|sold|sells?|left|total|spent)\b"
    r"|[가-힣]+[은는이가]\s|(?:\S+\s+){5}"
)
_ONE_UNIT = re.compile(r"\s?(?:[A-Za-z°]+(?:\^?[23])?|\s?[가-힣]{1,4})\.?")


@remembered
def ends_on_number(reference: str) -> bool:
    """Whether a reference is one to compare as a number: `18`, `... #### 18`, `It is $18.`, `18 cm`, not `May 1st`."""
    final = final_answer(reference)
    text = plain(final.text).rstrip(" .,;:!?)}*$\n\t")
    if final.marked:
        match = _NUMBER.search(text)
        return match is not None and (not final.whole or _is_number_with_unit(text, match))
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) == 1 and not text[: numbers[0].start()].strip() and _ONE_UNIT.fullmatch(text[numbers[0].end() :]):
        return True  # 18 cm
    if not numbers or numbers[-1].end() < len(text) or final_number(reference) is None:
        return False
    before = text[: numbers[-1].start()].strip(" $")
    return not re.search(r"[-+*/^,(\[{<>]$", before) and (not before or bool(_STATES.search(before)))


def _is_number_with_unit(text: str, match: re.Match[str]) -> bool:
    """`18 cm`, `x = 18`; not `2\\sqrt{3}`, `(1, 2)` or `3x + 1`."""
    rest = text[match.end() :].strip()
    before = text[: match.start()].strip(" $")
    return not re.search(r"[\\^+*/=,(\[{]|\d", rest) and not re.search(r"[\\^+*/,(\[{]|\d", before)

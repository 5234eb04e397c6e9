"""Parse numbers in text into exact values. Pure functions of text. Imports no torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from scorefast.files.text import without_calculator

_VULGAR = {c: f" {unicodedata.normalize('NFKC', c).replace(chr(0x2044), '/')}" for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_PLAIN = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u2014": " - ", "\u2044": "/", "×": "*", "⋅": "*", "·": "*", "∙": "*"}
    | {"’": "'", "‘": "'", "→": "=", "⇒": "="}
)


def _fraction(match: re.Match[str]) -> str:
    """3/4 for \\frac{3}{4}; 4/(2x) for \\frac{4}{2x}, so that no part of it is parsed as a fraction of numbers."""
    parts = (match[1] or match[2] or "", match[3] or match[4] or "")
    return "/".join(part if _PART.fullmatch(part) else f"({part})" for part in parts) + " "


def _repeating(match: re.Match[str]) -> str:
    """1/3 for 0.\\overline{3}."""
    whole, once, again = match.groups()
    top = int(whole + once + again) - int(whole + once)
    return f"{top}/{10 ** len(once) * (10 ** len(again) - 1)} "


_PART = re.compile(r"[-+\s\d.,%]*")
_LATEX: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (
        re.compile(
            r"\\(?:left|right|displaystyle|math(?:rm|bf|it|sf|tt)|text(?:bf|it)?|emph|underline|bm|mbox|rm|bf|q?quad)(?![A-Za-z])\s*"
        ),
        "",
    ),
    (re.compile(r"(\d{1,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*\{?(\d{1,20})\}?"), _repeating),
    (re.compile(r"(?<=\d)\s*(?=\\[dtc]?frac)"), " "),  # 1\frac{1}{2} is a mixed number
    (re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))"), _fraction),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!;: ](?=\d)"), ""),
    (re.compile(r"\\([$%#&_{}])"), r"\1"),
    (re.compile(r"\\[()\[\]]"), " "),
]
_SYMBOLS = {"times|cdot": "*", "div": "÷", r"approx|simeq": "~", r"neq?": "!=", r"implies|[Rr]ightarrow": "="}
_LATEX += [(re.compile(rf"\\(?:{names})(?![A-Za-z])"), new) for names, new in _SYMBOLS.items()]

_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MYRIADS = {"만": 10**4, "억": 10**8, "조": 10**12}
NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_^]) (?<!\d[.:,/'])
    (?P<sign> (?<![\w)\]}%]) [-+] )? (?:[$€£¥₩]\s?)? (?P<sign2>(?<=[$€£¥₩])[-+])?
    (?: (?P<korean> (?:\d[\d,]*(?:\.\d+)?\s?[천백]?[조억만천백]\s?)+ (?:(?:\d{1,3}(?:,\d{3})++|\d++)(?!\.\d))? )
      | (?P<whole>\d{1,6})[ ](?P<top>\d{1,6})/(?P<bottom>\d{1,6})(?![/\d])
      | (?P<digits> \d{1,3}(?:(?:,\d{3})++|(?:'\d{3})++|(?:_\d{3})++)(?!\d)(?:\.\d++)?
          | \d{1,3}(?:\.\d{3}){2,}+(?!,\d)
          | \d++(?:\.\d++)? | (?<![^\s$(=-])\.\d++ )
        (?: /(?P<over>\d++(?:\.\d++)?)(?!/)
          | [eE](?P<e>[-+]?\d{1,3})(?![\w.])
          | \s?[*x]\s?10\s?\^\s?[{(]?(?P<ten>[-+]?\d{1,3})[})]?
          | \^[{(]?(?P<power>[-+]?\d{1,3})[})]?
          | [\s-](?P<word>hundred|thousand|million|billion|trillion)\b )?
    )
    (?!\.?\d | [:^]\d | [,'_]\d{3} | (?:st|nd|rd|th)\b)
    (?P<percent>\s{0,2}(?:%|퍼센트|프로(?![가-힣])|percent\b))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[,'_]|\.(?=\d{3}\.)|(?<=\.\d{3})\.")  # of thousands
_KOREAN_PART = re.compile(r"(\d[\d,]*(?:\.\d+)?)?\s?([천백])?([조억만])?")


@dataclass(frozen=True, slots=True)
class Number:
    """value: the exact value; 75 % is 3/4. percent: whether the number has a per cent sign."""

    value: Fraction | int
    percent: bool = False

    def __str__(self) -> str:
        return f"{self.value * 100}%" if self.percent else str(self.value)

    def readings(self) -> tuple[Fraction | int, ...]:
        """The value, and for a percentage also the bare number: 0.75 and 75 for 75 %."""
        return (self.value, self.value * 100) if self.percent and not -0.01 < self.value < 0.01 else (self.value,)


# Groups of three digits after a first group of one to three. A plain space can also separate two numbers ("on day 12
# 500 people came"). It joins groups only after a line start, a sign, an opening mark or a word of `_AMOUNT`, and not
# before a hyphen ("3 100-dollar bills").
_THIN_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:[\u00a0\u2007\u2009\u202f]\d{3})++(?![\d-])")
_SPACED_GROUP = re.compile(r"\d \d{3}(?!\d)")
_SPACED_GROUPS = re.compile(r"(?<![\w.,:/'])\d{1,3}(?: \d{3})++(?![\d-]|[ ,:/']\d|\.\d{3})")
_AMOUNT = re.compile(
    r"(?:^|[^\w\s.,;)\]}]\s?|\b(?:is|are|was|were|be|equals|about|approximately|exactly|nearly|almost|total|costs?|makes?|gets?|gives?)\s"
    r"|(?:총|모두|약|은|는|이|가)\s)[-+]?\Z",
    re.IGNORECASE | re.MULTILINE,
)

_CENTS = re.compile(r"(?<![.\d])(\d+) (dollars?|euros?),? and (\d{1,2}) cents?\b")


def _joined(match: re.Match[str]) -> str:
    return re.sub(r"\s", "", match.group())


def _spaced(match: re.Match[str]) -> str:
    before = match.string[max(match.start() - 16, 0) : match.start()]
    return _joined(match) if _AMOUNT.search(before) else match.group()


def ungrouped(text: str) -> str:
    """The text without the spaces inside its numbers: 12500 for `12 500`."""
    if not text.isascii():
        text = _THIN_GROUPS.sub(_joined, text)
    return _SPACED_GROUPS.sub(_spaced, text) if _SPACED_GROUP.search(text) else text


_BELOW_ZERO = re.compile(
    r"(?:\b[Nn]egative\s+|(?:(?<=\bis )|(?<=\bto )|\A)[Mm]inus\s+|(?:영하|마이너스|음수)\s?)(?=[$\d])"
)


def plain(text: str) -> str:
    """Rewrite numbers in ASCII: full-width digits, vulgar fractions, superscripts, LaTeX, calculator annotations."""
    text = ungrouped(text)
    if not text.isascii():
        text = re.sub("[" + "".join(_VULGAR) + "]", lambda m: _VULGAR[m.group()], text)
        text = re.sub(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m.group().translate(_SUPERSCRIPT), text)
        text = re.sub(r"[₀-₉]+", lambda m: "_" + m.group(), text)
        text = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    if "<<" in text:
        text = without_calculator(text)
    if "</" in text:
        text = re.sub(r"</?[A-Za-z]{1,10}>", "", text)
    if " cent" in text:
        text = _CENTS.sub(lambda m: f"{m[1]}.{m[3]:0>2} {m[2]}", text)
    if _BELOW_ZERO.search(text):
        text = _BELOW_ZERO.sub("-", text)
    if ">" in text:
        text = re.sub(r"(?<=[\d)])\s*[-=]>", " =", text)  # 6 + 6 => 12
    if "\\" in text or "{" in text:
        for pattern, new in _LATEX:
            text = pattern.sub(new, text)
        text = re.sub(r"(?<![\^_])\{([^{}]*)\}", r"\1", text)
    return text


def value_of(match: re.Match[str]) -> Number | None:
    """The value of a match of `NUMBER`; None if it is undefined (1/0) or has too many digits."""
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
    if digits.isdecimal():
        return int(digits)
    digits = _SEPARATOR.sub("", digits)
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
    """The value of a text that is exactly one number: `-3`, `1,234.50`, `$18`, `3/4`, `75%`, `1.2e3`."""
    text = plain(text).strip()
    match = NUMBER.fullmatch(text)
    return value_of(match) if match else None

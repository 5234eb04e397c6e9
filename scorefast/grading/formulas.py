"""Formulas: extract one from a text, recognize one, and compare two. Imports no torch."""

from __future__ import annotations

import re
from functools import lru_cache

from scorefast.grading.answer import DENIED_AFTER, final_answer, last_line
from scorefast.grading.math_worker import MathWorker
from scorefast.grading.numbers import parse_number, plain, ungrouped
from scorefast.grading.stated import final_number

_SPAN = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$(.+?)(?<!\\)\$", re.DOTALL)
_LITERAL = re.compile(r"\\[lcvd]?dots\b|\.\.\.|\d\s*_\{?\d")  # 1, 2, ..., n and 52_8: math-verify parses only a part
_UNDONE = re.compile(r"[\s\d.,+\-*/^÷(){}$]*[\d}][\s)$]*[-+*÷][\s\d.,+\-*/^÷(){}$]*[A-Za-z가-힣° ]*")  # 9 + 9 cm
_OR = re.compile(
    r"\s*(?:,\s*)?(?:\\text\s*\{\s*(?:,\s*)?(?:or|and)\s*\}|\b(?:or|and|maybe|possibly|perhaps)\b"
    r"(?:\s+(?:possibly|perhaps|maybe))?|또는|혹은|아니면|그리고)\s*"
)

_BOLD = re.compile(r"(?<![\w)\]}])\*\*|\*\*(?![\w(\[{\\-])")  # not `x**2`
_KIND = re.compile(
    r"(?:the |an? )?(?:set|interval|point|pair|ratio|equation|line|function|expression|vector|matrix) (?:is |are )?"
    r"(?=\W|\w\b|\d)",
    re.IGNORECASE,
)
_SAID = re.compile(r".*[A-Za-z]{2} (?:is|are|equals|gives?|get|becomes)[: ]\s*(.+?)!?$")


def expression(text: str) -> str:
    """The LaTeX that a text commits to: its marked answer, else its last formula, else its last line if short."""
    final = final_answer(text)
    if final.marked:
        spans = list(_SPAN.finditer(final.text)) if not final.whole else []
        said = final.text
        if len(spans) == 1:
            if _denied_span(final.text, spans[0]):
                return ""
            said = next(filter(None, spans[0].groups()))
        return _tidy(said)
    line = last_line(text)
    spans = list(_SPAN.finditer(text))
    if spans and not text[spans[-1].end() :].strip(" \n.*"):
        line = text[max(spans[-1].start() - 200, 0) :]  # ends on a formula, possibly of several lines
    if line.rstrip().endswith("?"):
        return ""
    spans = list(_SPAN.finditer(line))
    if spans:
        first = len(spans) - 1
        while first and _OR.fullmatch(line[spans[first - 1].end() : spans[first].start()]):
            first -= 1  # "$1$ or $2$" is one answer with two values
        if _denied_span(line, spans[-1]):
            return ""
        return _tidy(", ".join(next(filter(None, s.groups())) for s in spans[first:]))
    sentence = _SAID.match(line) if len(line) <= 200 else None
    if sentence and is_formula(_tidy(sentence[1])):
        return _tidy(sentence[1])  # `The ratio is 2:3.`
    return _tidy(line) if len(line) <= 80 else str(final_number(text) or "")


def _denied_span(text: str, span: re.Match[str]) -> bool:
    return bool(
        re.search(r"(?:\bnot|n't|\bcannot)\s*(?:be\s*)?$", text[: span.start()]) or DENIED_AFTER.match(text, span.end())
    )


def _tidy(text: str) -> str:
    text = _BOLD.sub("", ungrouped(text)).strip().strip("$").strip().rstrip(".").strip("*").strip()[:1000]
    if re.match(r"not\b", text, re.IGNORECASE):
        return ""
    text = _KIND.sub("", text).replace(" is in ", r" \in ")
    text = re.sub(r"\\(?:mathrm|text|mathbf)\s*\{(\w|\d+[a-z]?)\}", r"\1", text).replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"(?<=\d)_\{(\d+)\}", r"_\1", text)
    return re.sub(r",\s*,", ",", _OR.sub(", ", text))


_SIGNS = {
    "×": "times",
    "÷": "div",
    "·": "cdot",
    "⋅": "cdot",
    "π": "pi",
    "θ": "theta",
    "∞": "infty",
    "∪": "cup",
    "∩": "cap",
}
_SIGNS |= {"≤": "le", "≥": "ge", "≠": "ne", "±": "pm", "∈": "in", "∅": "emptyset", "⩽": "le", "⩾": "ge"}
_LATEX = str.maketrans({sign: f"\\{name} " for sign, name in _SIGNS.items()} | {"−": "-", "–": "-", "ℝ": r"\mathbb{R}"})
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOT = re.compile(r"([√∛])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_SPELT = [
    (re.compile(r"(?<![\\A-Za-z])(pi|sqrt|log|ln|sin|cos|tan)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"(?<![\\A-Za-z])(?:inf|infinity|oo)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    *(
        (re.compile(sign), f"\\\\{name} ")
        for sign, name in (("<=", "le"), (">=", "ge"), ("!=", "ne"), (r"\+/?-(?=\s?\d)", "pm"))
    ),
    (re.compile(r"\*\*"), "^"),
    (
        re.compile(r"\\?\{\s*[a-z](?:\s*\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:\\mid|[|:])\s*([^{}|:]+?)\\?\}"),
        r"\1",
    ),  # { x | x > 3 }
]


def latex(text: str) -> str:
    """Convert a formula in Unicode (`2√3`, `x² ≤ π`) or ASCII (`sqrt(2)`, `x <= pi`) to LaTeX."""
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m.group().translate(_RAISED)}}}", text)
        text = re.sub("[₀-₉]+", lambda m: f"_{{{m.group().translate(_LOWERED)}}}", text)
        text = _ROOT.sub(lambda m: rf"\sqrt{'[3]' * (m[1] == '∛')}{{{m[2] or m[3] or m[4]}}}", text).translate(_LATEX)
    for pattern, new in _SPELT:
        text = pattern.sub(new, text)
    return text


_NUMERAL = r"[-+]?\d[\d.]*(?:/\d+)?%?"
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?")
_FORMULA = re.compile(
    rf"""[\w)\]}}]\s*\^  |  [\w)\]}}|]\s*=\s*[-+\w(\[{{|]  |  [\w)\]}}]\s*[+*]\s*[\w(\[{{|]
    | (?:^|[\w)\]}}|]\s*)[<>]\s*[-+\d]  |  [\w)|]\s*[<>]\s*\w
    | (?<![A-Za-z])[a-z]\s*[-/]\s*[\d(]  |  [\d)]\s*[-/]\s*(?:[a-ce-z](?![A-Za-z])|\()
    | (?<![A-Za-z])[abxy]/[abxy](?![A-Za-z])
    | ^\s*[\[({{].*,.*[\])}}]\s*$  |  ^\s*\{{.*\}}\s*$  |  ^\|.*\|$
    | ^\s*{_NUMERAL}(?:\s*[,;]\s*{_NUMERAL})+\s*$  |  ^\s*[\d.]+(?:\s*:\s*[\d.]+)+\s*$
    | \d!(?!\w)  |  \d\s*[-+]\s*\d*\.?\d*[inxyz](?![A-Za-z])  |  \d(?:n|[xyz]{{1,2}})(?![A-Za-z])""",
    re.VERBOSE,
)
# Equations that do not assign a value to a single unknown: `x + y = 5`, `3x = y`, `x = 1, y = 2`; not `P(A) = 5`.
_EQUATION = re.compile(
    r"(?![A-Za-z]\(\w\)\s*=)"
    r"[^=<>]*(?:\d[a-z](?![A-Za-z])|(?<![A-Za-z])[a-z]\s*[-+*/^]|[-+*/^]\s*[a-z](?![A-Za-z]))[^=<>]*="
    r"|[^=]*=[^=,;]*[,;][^=,;]*="
)
_MULTIPLE = re.compile(r"-?\d+(?:n|[xyz]{1,2})")


def is_formula(text: str) -> bool:
    """Whether a short text is a formula (`x²+1`, `(0, 1]`, `1, 2`, `2:3`), not words, a date or a time."""
    if re.search(r"\\[a-zA-Z]+|\$[^$]+\$", text):
        return True
    written = latex(text)
    bare = re.sub(r"\\[a-z]+", " ", written)
    if len(text) > 200 or re.search(r"[^\W\d_]{3}|[^\W\da-zA-Z_]{2}|[?#@&\"$]", bare) or _CLOCK.fullmatch(text.strip()):
        return False
    return "\\" in written or _FORMULA.search(bare) is not None


def is_more_than_a_number(text: str) -> bool:
    """Whether a formula that ends in a number is not a single value: an equation other than `x = 5`, or a multiple of
    an unknown."""
    if not is_formula(text):
        return False
    return bool(_MULTIPLE.fullmatch(text) or _EQUATION.match(re.sub(r"(?<=\d)\s*x\s*(?=\d)", "*", text)))


def in_words(text: str) -> bool:
    """Whether a text states a number with words (`\\$26 per week`, `60 km/h`) and not in a formula."""
    return re.search(r"[A-Za-z]{2}|\d [A-Za-z]/[a-z]", text) is not None and not re.search(
        r"\\[A-Za-z(\[]|[\^_{]", text
    )


def equal(answer: str, truth: str) -> tuple[bool, str]:
    """(Whether two expressions are mathematically equal, why). An unevaluated sum does not equal its result."""
    members = [parse_number(part) for part in answer.split("=")]
    if len(members) > 1 and None not in members and len({m.value for m in members if m}) > 1:
        return False, "contradicts itself"  # 20 = 18
    result = None if is_more_than_a_number(truth) else parse_number(truth.split("=")[-1])
    if result and not any(members) and _UNDONE.fullmatch(plain(answer.split("=")[-1])):
        return False, "a sum left undone"
    if "".join(answer.split()) == "".join(truth.split()):
        return True, "the same formula"
    if _LITERAL.search(answer + truth):
        return False, "another formula"
    right = _worker_equal(latex(truth), latex(answer))
    return right, "mathematically equal" if right else "not mathematically equal"


WORKER = MathWorker()


@lru_cache(maxsize=4096)
def _worker_equal(truth: str, answer: str) -> bool:
    return WORKER.equal(truth, answer)

"""Extract the final answer that a reply commits to. Pure functions of text. Imports no torch.

The final answer follows the last marker: `#### x`, `\\boxed{x}`, `The answer is x`, `Answer: x`, `A: x`, `정답은 x` or
`{"answer": x}`. Without a marker, or if the reply retracts the marked answer ("Wait, ..."), it is the last statement.
The result of a calculation counts (`5 apples + 7 apples = 12`), and `#### Step 1` before a solution is a heading.

A reply commits to no number with several candidates ("18 or 20", "16, 17, 18"), a negation ("not 18"), a bound ("more
than 18"), an unevaluated sum ("9 + 9"), a part of a formula (`4\\pi`) or a question ("Is it 18?").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TypeVar

from scorefast.grading.numbers import NUMBER, plain

MAX_CHARACTERS = 20_000  # only the last ones of a longer text are graded, to bound the time


@dataclass(frozen=True)
class Grade:
    """The grade of one reply.

    score: nearness in [0, 1], 1 exactly if correct. answer: the text that was graded. reason: a few words for
    `grade --explain`. unsure: the rules cannot decide; the reply then counts as wrong.
    """

    correct: bool
    score: float
    answer: str = ""
    reason: str = ""
    unsure: bool = False


_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?=[\w$.-])")
# Cheap search for candidate positions; `_PHRASE` must match there.
_STARTS = (
    "####",
    "answer",
    "Answer",
    "ANSWER",
    "A:",
    "A*",
    "답",
    "答",
    "ntwort",
    "éponse",
    "espuesta",
    "isposta",
    "твет",
)
_PHRASE = re.compile(
    r"""\#{4}
      | (?<![^\W_])answer(?P<quote>["']) \s*:
      | (?<!\w)answers?\b (?:\s++(?!is\b|are\b|was\b)[\w']+){0,4}? \s*+[*_`]*+\s*+
        (?::|=(?!==)|(?:is|are|was|equals|(?:would|should|must|will)\s+be)\b\s*:?)
      | (?<=<)answer>
      | (?P<heading> (?<!\w)answer[ \t*_]*$ )
      | (?P<line> A[*_]*: )
      | 答(?:案|え)?[*_]* (?: \s?[是为為はが] | \s*[:=：] ) \s*:?
      | (?<=A)ntwort[*_]* \s* (?: : | (?:ist|lautet|beträgt)\b\s*:? )
      | (?:(?<=[Rr])(?:éponse|espuesta|isposta))[*_]* \s* (?: : | (?:finale?\s)? (?:est|es|è)\b\s*:? )
      | (?<=[Оо])твет[*_]* \s* :
      | (?:(?<=정)|(?<=해)|(?<![가-힣]))답[*_]* \s* (?:은|는|:|=) \s*:?
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_BEFORE_HEADING = re.compile(r"[ \t>#*_]*(?:(?:the|my|final|correct)[ \t]+){0,2}", re.IGNORECASE)
_UNDERLINE = re.compile(r"\s*(?:={3,}|-{3,})[ \t]*(?=\n)")
_JSON_VALUE = re.compile(r"\s*(?:\"((?:[^\"\\]|\\.)*)\"|'([^'\n]*)'|(\[[^\]\n]*\]|[^,}\n]*))")
RETRACTED = re.compile(
    r"(?:(?:^|[.!?。\n])[\s*_)$}]{0,40}+(?:but\s+)?"
    r"(?:(?:wait|no|oops|sorry|hmm|actually|correction|아니|잠깐|죄송\w*)[,.!: ]"
    r"|let me (?:re|correct|fix|try)|on second thought|scratch that|다시 (?:계산|생각|풀)|정정)"
    r"|\b(?:that|this|which|it)(?:'s| is| was) (?:wrong|incorrect|not right)|\bI made an? (?:mistake|error)|틀렸|실수)",
    re.IGNORECASE,
)
_NEGATED_MARKER = re.compile(
    r"(?:n't|\bnot|\bnever|\bdoubt|\bfalse|\bwrong|\bincorrect|\btrap|\bfake)\b[^.,!?]{0,30}\Z|(?:틀린|잘못된|오)\s?\Z",
    re.IGNORECASE,
)
DENIED_AFTER = re.compile(
    r"\W*(?:(?:is|are|was)\s+(?:not|wrong|incorrect|false)|isn't|번?[은는이가]?\s?(?:아니|아닙|틀))"
)
SENTENCE_END = re.compile(r"</|(?<=[^\W\d])[.!](?=\s|$)|[.!?](?=\s|$)|[。？！]|\n")

Found = TypeVar("Found")


def cached_if_short(function: Callable[[str], Found]) -> Callable[[str], Found]:
    """Cache a function of a reference answer, which recurs with every reply. Long references are not cached."""
    cached = lru_cache(maxsize=65_536)(function)
    return wraps(function)(lambda text: cached(text) if len(text) <= 200 else function(text))


@dataclass(frozen=True)
class Final:
    """text: what the reply commits to. marked: a marker introduces it. whole: the text is exactly the answer, as in a
    box or on the line of `####`."""

    text: str
    marked: bool
    whole: bool = False


def final_answer(reply: str) -> Final:
    """The text after the last marker, up to the end of its sentence or brace; without a marker, the reply itself."""
    reply = reply[-MAX_CHARACTERS:]
    boxes = list(_BOXED.finditer(reply)) if "\\boxed" in reply or "\\fbox" in reply else []
    markers = [(m.end(), m) for m in (*boxes, *_phrases(reply))]
    for _, match in sorted(markers, key=lambda m: m[0], reverse=True):
        final, end = _boxed(reply, boxes, match) if match in boxes else _phrased(reply, match)
        if not final.text.strip(" \t\n.:*_$"):
            continue  # a marker without an answer
        retraction = RETRACTED.search(reply, end)
        if retraction and re.search(r"\w", reply[retraction.end() :]):
            break  # the last statement counts
        line = max(match.start() - 60, reply.rfind("\n", 0, match.start()) + 1)
        if match not in boxes and _NEGATED_MARKER.search(reply, line, match.start()):
            return Final("", marked=True, whole=True)  # `I don't think the answer is 18`
        return final
    return Final(reply, marked=False)


def last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]


def unlatexed(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text).replace("$", "")


def _phrases(reply: str) -> Iterator[re.Match[str]]:
    for word in _STARTS:
        start = reply.find(word)
        while start >= 0:
            match = _PHRASE.match(reply, start)
            anywhere = match is not None and match.lastgroup in (None, "quote")
            if match and (anywhere or _BEFORE_HEADING.fullmatch(reply, reply.rfind("\n", 0, start) + 1, start)):
                yield match
            start = reply.find(word, start + 1)


def _phrased(reply: str, marker: re.Match[str]) -> tuple[Final, int]:
    start = marker.end()
    if marker["quote"] and (value := _JSON_VALUE.match(reply, start)):  # {"answer": 15, "steps": 3}
        return Final(next(filter(None, value.groups()), ""), marked=True, whole=True), value.end()
    if marker["heading"] and (underline := _UNDERLINE.match(reply, start)):
        start = underline.end()
    while start < len(reply) and reply[start] in " \t\n*_:`":
        start += 1
    if marker.group() == "####":
        end = (reply + "\n").find("\n", start)
        heading = reply[end:].strip() and not _VALUE_ALONE.fullmatch(plain(reply[start : min(end, start + 80)]))
        return Final("" if heading else reply[start:end], marked=True, whole=True), end
    if marker.group().endswith(":") and not _DIRECT.match(reply, start):
        return Final(reply[start:], marked=True), len(reply)  # `A: ` before a worked solution: its last statement
    found = SENTENCE_END.search(reply, start)
    while found and found.group() == "." and _is_abbreviation(reply, start, found.start()):
        found = SENTENCE_END.search(reply, found.end())
    end = found.start() + (found.group() in "?？") if found else len(reply)
    operands, equals, _ = reply[start:end].partition("=")
    if equals and marker.group().endswith(":") and len(NUMBER.findall(operands)) > 1:
        end = (reply + "\n\n").find("\n\n", end)  # `A: 16 - 7 = 9. 9 * 2 = 18`: to the end of the paragraph
    return Final(reply[start:end], marked=True), end


# After `####` with more lines below: an answer (`$18`, `x = 5 cm`, `(B)`), not a heading (`Step 1`, `3. Total`).
_VALUE_ALONE = re.compile(
    r"\W{0,9}(?:[A-Za-z] ?= ?)?\W{0,9}(?:\d[\d,./ ]*(?<![. ])(?:\s?[a-z°가-힣][\w°/^]{0,15}){0,2}|[A-J①-⑩])\W{0,9}"
)
# An answer, not a sentence or a list: a number, a formula or up to six words before the line or sentence ends.
_DIRECT = re.compile(
    r"(?!1[.)]\s+\S)[*_`$(\[\\]{0,20}"
    r"(?:[-+]?[$€£₩]?\.?\d|[^\s.=\d]++(?:[ \t]+[^\s.=\d]++){0,5}[ \t]*[.*_`$)]*(?:\n|\Z))"
)

# After an initial: the rest of a name, up to the end of the sentence.
_NAME = re.compile(r" (?:[^\W\da-z_][\w'’-]*\.? ){0,4}[^\W\da-z_][\w'’-]+(?=[.!*_)\"]| *(?:\n|\Z))")


def _is_abbreviation(reply: str, start: int, dot: int) -> bool:
    word = re.split(r"[\s(]", reply[max(start, dot - 20) : dot])[-1]
    if re.fullmatch(r"(?:[^\W\d_]\.)*[A-Z]", word):  # `J. K. Rowling`, not `B. It is` or `A. Wait, no`
        return _NAME.match(reply, dot + 1) is not None and not RETRACTED.match(reply, dot)
    return word.lower() in {"approx", "ca", "no", "st", "dr", "mr", "mrs", "ms", "rs", "vs", "e.g", "i.e"}


UNIT = r"(?:\s?/?[A-Za-z가-힣°]{1,20}\.?){0,2}?"  # at most two words between a number and a conjunction
ALTERNATIVE = re.compile(
    rf"""[*_`)\s]* {UNIT} [*_`)\s]*
    (?: [,;.]?\s*\(?(?:(?:and\s*/\s*)?or|and|and\ also|alternatively)\b
      | [,;.]?\s*(?:또는|혹은|아니면|이나|나|거나|이거나|내지|인지|하고|와|과)\b
      | [,;(]\s*(?:or\s+)?(?:maybe|perhaps|possibly|probably|아마|어쩌면)
      | [~/] | \s?-{{1,2}}\s? | \s?to\b | \s?through\b | 에서 )
    (?: \s+(?:maybe|perhaps|possibly|even|else|either|also|it\s+(?:(?:could|might|may)\s+be|is|was)))*
    [,(:]*[*_`$\s]*(?:[A-Za-z]\s*=\s*)?""",
    re.VERBOSE | re.IGNORECASE,
)

_MATH_SIGNS = re.compile(r"\\[()\[\]]|\$")


def _boxed(reply: str, boxes: Sequence[re.Match[str]], box: re.Match[str]) -> tuple[Final, int]:
    """The content of a box, together with boxes joined to it: "1 and 2" or "1, 2" are several candidates."""
    content, end = _braced(reply, box.end())
    said, start = {content.strip()}, box.start()
    for before in reversed(boxes[: boxes.index(box)]):
        other, closed = _braced(reply, before.end())
        between = _MATH_SIGNS.sub(" ", reply[closed:start]) if start - closed < 60 else "."
        if not (ALTERNATIVE.fullmatch(between) or between.strip() in (",", ";")):
            break
        if other.strip() not in said:
            content = f"{other}{between}{content}"
        said.add(other.strip())
        start = before.start()
    after = re.match(r"[\s$\\)\]]*(?:or|또는|혹은|아니면)\b[^.\n]*", reply[end:])
    if after and any(c.isdigit() for c in after.group()):
        content += after.group()
    return Final(content, marked=True, whole=True), end


def _braced(text: str, start: int) -> tuple[str, int]:
    """The text between the brace at `start` and its partner, and its end; without a brace, the next token."""
    if not text.startswith("{", start):
        token = re.compile(r"\S+").match(text, start)
        return (token.group().rstrip("$."), token.end()) if token else ("", start)
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i], i + 1
    return text[start + 1 :], len(text)
